// Threads that wait for queries. For one caller in a loop they spin for a moment, because a query is shorter than a wake-up;
// then, and among several callers at once, they park.
#pragma once

#include <atomic>
#include <chrono>
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

// The calling thread, as the address of something that only it has.
inline const void* this_thread() {
  thread_local char here = 0;
  return &here;
}

// Waiting for another thread: pauses first, then gives the core away, since the other may be waiting for this very core, then
// sleeps, since it may be one of lower priority.
class Patience {
 public:
  void wait() {
    if (++turns_ < kPauses) return pause();
    if (turns_ < kPauses + kYields) return std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  void reset() { turns_ = 0; }
  // The same for a thread that has nothing which others of its query need. A helper may be called off while it has given its
  // core away, since nobody knows when it gets one again: false then, and it must touch nothing of the query any more.
  bool linger();

 private:
  static constexpr int kPauses = 200, kYields = 200;
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
    // Call off helpers that have not started or linger without a core, and wait for the others to return.
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

  // Until `gone()`, asked again whenever a helper is done with a query.
  template <class Gone>
  void wait_for_helpers(Gone gone) {
    awaited_.fetch_add(1);
    for (uint32_t done = done_.load(); !gone(); done = done_.load()) done_.wait(done);
    awaited_.fetch_sub(1);
  }
  void tell_done() {
    done_.fetch_add(1);
    if (awaited_.load() > 0) done_.notify_all();
  }
  // Take note of who asks for helpers, or needs their cores.
  void note_caller();
  // Whether a helper spins after a query. A caller in a loop is back in a moment. Among several callers the next query comes
  // when it likes, and the core that the helper would spin on is the one that its caller needs to be seen at all.
  bool stays() const { return in_a_row_.load(std::memory_order_relaxed) >= kLoop; }
  // Helpers that work on no query now, of all that exist.
  int idle() const;
  int helpers() const { return count_.load(std::memory_order_acquire); }

 private:
  // A slot's word: its state, and above it the turn, which every claim raises. Who remembers a turn cannot mistake the
  // helper's next query for its own.
  enum State : uint32_t { kSpinning, kParked, kClaimed, kAssigned, kRunning, kAway, kMask = 7 };
  static constexpr uint32_t kTurn = 8;
  // Queries of one caller after another, none of another caller between them, from which on it is taken for a loop.
  static constexpr int kLoop = 16;

  struct alignas(128) Slot {
    std::atomic<uint32_t> state{kSpinning};
    Work work = nullptr;
    void* shared = nullptr;
    int worker = 0;
  };

  friend class Patience;

  void grow(int wanted);
  void loop(Slot& slot);
  // The turn's word if the slot was in `from` and is claimed now, else 0.
  static uint32_t claim(Slot& slot, State from);

  std::unique_ptr<Slot[]> slots_{new Slot[kMostThreads]};
  std::atomic<int> count_{0};
  std::atomic<uint32_t> done_{0};
  std::atomic<int> awaited_{0};
  std::atomic<const void*> caller_{nullptr};
  std::atomic<int> in_a_row_{0};
  std::mutex growing_;
};

}  // namespace statepool::graph
