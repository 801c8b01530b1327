// Threads that wait for queries: they spin for a moment, because a query is shorter than a wake-up, and then park.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

namespace statepool::graph {

constexpr int kMostThreads = 64;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Waiting for another thread: pauses first, then gives the core away, since the other may be waiting for this very core.
class Patience {
 public:
  void wait() {
    if (++turns_ < kPauses) return pause();
    std::this_thread::yield();
  }
  void reset() { turns_ = 0; }

 private:
  static constexpr int kPauses = 200;
  int turns_ = 0;
};

class Crew {
 public:
  using Work = void (*)(void* shared, int worker);

  // The crew of this process; a forked child gets one of its own.
  static Crew& instance();

  // The helpers of one query. They start whenever they get to it; the caller waits for none of them to start.
  class Team {
   public:
    // Ask for `wanted` helpers to run work(shared, 1), work(shared, 2), …; those busy elsewhere are not waited for.
    Team(Crew& crew, int wanted, Work work, void* shared);
    ~Team() { dismiss(); }
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;
    int size() const { return size_; }
    // Call off helpers that have not started and wait for the others to return.
    void dismiss();

   private:
    Crew& crew_;
    struct Member {
      int slot;
      uint32_t turn;
    };
    Member members_[kMostThreads];
    int size_ = 0;
  };

  // Helpers that work on no query now, of all that exist.
  int idle() const;
  int helpers() const { return count_.load(std::memory_order_acquire); }

 private:
  // A slot's word: its state, and above it the turn, which every claim raises. Who remembers a turn cannot mistake the
  // helper's next query for its own.
  enum State : uint32_t { kSpinning, kParked, kClaimed, kAssigned, kRunning, kMask = 7 };
  static constexpr uint32_t kTurn = 8;

  struct alignas(128) Slot {
    std::atomic<uint32_t> state{kSpinning};
    Work work = nullptr;
    void* shared = nullptr;
    int worker = 0;
  };

  void grow(int wanted);
  void loop(Slot& slot);
  // The turn's word if the slot was in `from` and is claimed now, else 0.
  static uint32_t claim(Slot& slot, State from);

  std::unique_ptr<Slot[]> slots_{new Slot[kMostThreads]};
  std::atomic<int> count_{0};
  std::mutex growing_;
};

}  // namespace statepool::graph
