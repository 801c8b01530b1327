// Fork and join for the baselines that have a barrier: the caller opens a round, helpers do their part, all meet.
#pragma once

#include "crew.h"

namespace statepool::graph {

class Rounds {
 public:
  using Part = void (*)(void* shared, int part, int parts);

  Rounds(int threads, Part part, void* shared)
      : part_(part), shared_(shared), team_(Crew::instance(), threads - 1, &Rounds::helper, this) {}
  ~Rounds() {
    word_.store(kOver, std::memory_order_release);
    team_.dismiss();
  }

  // part(shared, i, parts) for every i on a thread of its own; returns when all are done. Helpers that have not started
  // yet take no part.
  void run() {
    const int parts = this->parts();
    done_.store(0, std::memory_order_relaxed);
    word_.store(++round_ << 8 | static_cast<uint64_t>(parts), std::memory_order_release);
    part_(shared_, 0, parts);
    Patience patience;
    while (done_.load(std::memory_order_acquire) != parts - 1) patience.wait();
  }
  int parts() const { return 1 + joined_.load(std::memory_order_acquire); }

 private:
  static constexpr uint64_t kOver = ~uint64_t{0};

  static void helper(void* shared, int) { static_cast<Rounds*>(shared)->loop(); }

  void loop() {
    uint64_t seen = word_.load(std::memory_order_acquire);
    // A round opened before this helper was counted does not wait for it.
    const int part = 1 + joined_.fetch_add(1, std::memory_order_acq_rel);
    for (Patience patience;; patience.wait()) {
      const uint64_t word = word_.load(std::memory_order_acquire);
      if (word == kOver) return;
      if (word == seen) continue;
      seen = word;
      patience.reset();
      const int parts = static_cast<int>(word & 255);
      if (part >= parts) continue;
      part_(shared_, part, parts);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  Part part_;
  void* shared_;
  uint64_t round_ = 0;
  alignas(128) std::atomic<uint64_t> word_{0};  // the round, and below it how many take part
  alignas(128) std::atomic<int> joined_{0};
  alignas(128) std::atomic<int> done_{0};
  Crew::Team team_;
};

}  // namespace statepool::graph
