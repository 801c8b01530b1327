// Asynchronous search by roles (AverSearch, arXiv 2504.20461, section 4) for many threads.
//
// The threads form groups. A group's maintainer owns a slice of the candidates: it takes finished distances from the
// group's array, picks what to expand, and publishes the unmet neighbours as work. Calculators turn ids into distances and
// never wait for anybody. The balancer, which is the caller, lowers the shared threshold to the L-th best of all slices,
// moves surplus candidates to groups that ran out, and ends the search.
#pragma once

#include <algorithm>

#include "query.h"

namespace statepool::graph {

// Work and results of one group. A slot goes free -> asked -> taken -> ready -> free; each step is one thread's.
class Desk {
 public:
  static constexpr int kSlots = 256;
  enum State : uint32_t { kFree, kAsked, kTaken, kReady };

  struct Slot {
    std::atomic<uint32_t> state{kFree};
    uint32_t id = 0;
    float distance = 0;
  };

  void reset() {
    for (Slot& slot : slots_) slot.state.store(kFree, std::memory_order_relaxed);
    asked_ = taken_back_ = 0;
    next_.store(0, std::memory_order_relaxed);
    published_.store(0, std::memory_order_relaxed);
  }

  // The maintainer's side: slots are used in a circle, so room is what has not come back yet.
  int room() const { return kSlots - static_cast<int>(asked_ - taken_back_); }
  int waiting() const {
    return static_cast<int>(asked_ - std::min(asked_, next_.load(std::memory_order_relaxed)));
  }
  bool quiet() const { return asked_ == taken_back_; }
  void ask(uint32_t id) {
    Slot& slot = at(asked_++);
    slot.id = id;
    slot.state.store(kAsked, std::memory_order_relaxed);
  }
  void publish() { published_.store(asked_, std::memory_order_release); }
  // Finished distances in the order they were asked for, up to the first that is not finished.
  int collect(Hits& hits) {
    hits.count = 0;
    while (hits.count < kMostDegree && taken_back_ < asked_) {
      Slot& slot = at(taken_back_);
      if (slot.state.load(std::memory_order_acquire) != kReady) break;
      hits.ids[hits.count] = slot.id;
      hits.distances[hits.count++] = slot.distance;
      slot.state.store(kFree, std::memory_order_relaxed);
      ++taken_back_;
    }
    return hits.count;
  }

  // The calculators' side: claim up to `most` ids. Positions count up for ever, so a late claim cannot meet an old slot.
  int claim(uint64_t& first, int most) {
    uint64_t next = next_.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t published = published_.load(std::memory_order_acquire);
      if (next >= published) return 0;
      const int some = static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(most), published - next));
      if (next_.compare_exchange_weak(next, next + static_cast<uint64_t>(some), std::memory_order_relaxed)) {
        first = next;
        return some;
      }
    }
  }
  uint32_t id(uint64_t position) { return at(position).id; }
  void finish(uint64_t position, float distance) {
    Slot& slot = at(position);
    slot.distance = distance;
    slot.state.store(kReady, std::memory_order_release);
  }

 private:
  Slot& at(uint64_t position) { return slots_[position % kSlots]; }

  Slot slots_[kSlots];
  uint64_t asked_ = 0, taken_back_ = 0;
  alignas(128) std::atomic<uint64_t> next_{0};
  alignas(128) std::atomic<uint64_t> published_{0};
};

}  // namespace statepool::graph
