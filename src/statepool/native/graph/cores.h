// Whose turn it is: searches that choose their threads share the cores, and wait for one rather than stop each other.
//
// A thread that shares its core is stopped for milliseconds, a query takes a quarter of one: to wait is quicker. To be woken
// takes a quarter of a query again, so nobody waits for a core that another search has beside its first: those are lent, and
// called back at once. Most searches get one core whatever anybody decides; they take and give it back with one addition each.
// statepool.vector.policy says how many threads a search gets; the tests compare.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "crew.h"

namespace statepool::graph {

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// How many threads a search may use. It may be lowered while the search runs: helpers beyond it leave what they have to the
// others and go.
struct Lease {
  explicit Lease(int threads) : threads(threads) {}
  // Another caller needs the cores. They are free when this returns: a helper that were stopped amid its work would stop the
  // whole search.
  void lower(int to) {
    threads.store(to);
    Crew& crew = Crew::instance();
    crew.note_caller();
    if (helpers.load() >= to) crew.wait_for_helpers([&] { return helpers.load() < to; });
  }
  std::atomic<int> threads;
  std::atomic<int> helpers{0};  // that are at work
};

class Cores {
 public:
  // A caller is expected back for so many nanoseconds after its search.
  Cores(int count, int64_t moment_ns) : count_(count), moment_ns_(moment_ns) {}

  // Threads of searches that did not ask for their number here.
  inline static std::atomic<int> others{0};

  // What one search has of the cores.
  class Grant {
   public:
    // At most `most` threads. `waits`: whether it waits while every core has a search; one that may not gets one thread at
    // once. `lends`: whether it looks at its lease, so that all but the first may be called back.
    Grant(Cores& cores, int most, bool waits, bool lends);
    ~Grant() { end(); }
    Grant(const Grant&) = delete;
    Grant& operator=(const Grant&) = delete;
    void end();
    Lease* lease() { return alone_ ? nullptr : &lease_; }
    int threads() const { return lease_.threads.load(); }

   private:
    friend class Cores;
    Cores* cores_;
    bool alone_;
    Lease lease_{1};
  };

  // Of all that have a grant.
  int threads() const { return threads_of(used_.load()); }
  int searches() const { return searches_of(used_.load()); }
  int waiting() const { return waiting_.load(); }

 private:
  static constexpr size_t kPlaces = 64;

  bool take_one(bool suffices);
  void call_back(int most);
  int returning() const;
  void leave(int threads);
  // Of the calling thread. Two threads may have the same, and be taken for one.
  static size_t place();
  // Both in one word, so that a search sees them as they were together. Neither becomes negative.
  static uint64_t word(int threads, int searches) {
    return static_cast<uint64_t>(static_cast<int64_t>(searches) * (int64_t{1} << 32) + threads);
  }
  static int threads_of(uint64_t word) { return static_cast<int>(word & 0xffffffffu); }
  static int searches_of(uint64_t word) { return static_cast<int>(word >> 32); }

  const int count_;
  const int64_t moment_ns_;
  std::mutex mutex_;  // of those with something to decide
  std::condition_variable free_;
  std::vector<Grant*> lent_;
  alignas(128) std::atomic<uint64_t> used_{0};
  std::atomic<int> waiting_{0};
  alignas(128) std::atomic<int64_t> ended_[kPlaces] = {};
};

}  // namespace statepool::graph
