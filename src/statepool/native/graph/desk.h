// Where a maintainer leaves ids and finds distances: a ring between one thread that asks and several that compute.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "walk.h"

namespace statepool::graph {

class Desk {
 public:
  static constexpr int kSlots = 512;

  void reset() {
    for (Slot& slot : slots_) slot.ready.store(false, std::memory_order_relaxed);
    asked_ = returned_ = 0;
    next_.store(0, std::memory_order_relaxed);
    published_.store(0, std::memory_order_relaxed);
  }

  // The maintainer's side. Slots are used in a circle.
  int room() const { return kSlots - static_cast<int>(asked_ - returned_); }
  bool quiet() const { return asked_ == returned_; }
  // Asked for and claimed by nobody yet.
  int waiting() const { return static_cast<int>(asked_ - std::min(asked_, next_.load(std::memory_order_relaxed))); }
  void ask(const uint32_t* ids, int count) {
    for (int i = 0; i < count; ++i) at(asked_ + static_cast<uint64_t>(i)).id = ids[i];
    asked_ += static_cast<uint64_t>(count);
    published_.store(asked_, std::memory_order_release);
  }
  // Finished distances in the order they were asked for, up to the first that is not finished.
  int collect(Hits& hits) {
    hits.count = 0;
    while (hits.count < kMostDegree && returned_ < asked_) {
      Slot& slot = at(returned_);
      if (!slot.ready.load(std::memory_order_acquire)) break;
      hits.ids[hits.count] = slot.id;
      hits.distances[hits.count++] = slot.distance;
      slot.ready.store(false, std::memory_order_relaxed);
      ++returned_;
    }
    return hits.count;
  }

  // The calculators' side: claim up to `most` positions, compute their distances, hand them back. Positions count up for
  // ever, so a late claim cannot meet an old slot.
  template <class Compute>
  int serve(int most, Compute compute) {
    uint64_t next = next_.load(std::memory_order_relaxed);
    uint64_t some;
    do {
      const uint64_t published = published_.load(std::memory_order_acquire);
      if (next >= published) return 0;
      some = std::min<uint64_t>(static_cast<uint64_t>(most), published - next);
    } while (!next_.compare_exchange_weak(next, next + some, std::memory_order_relaxed));
    Hits hits;
    hits.count = static_cast<int>(some);
    for (int i = 0; i < hits.count; ++i) hits.ids[i] = at(next + static_cast<uint64_t>(i)).id;
    compute(hits);
    for (int i = 0; i < hits.count; ++i) {
      Slot& slot = at(next + static_cast<uint64_t>(i));
      slot.distance = hits.distances[i];
      slot.ready.store(true, std::memory_order_release);
    }
    return hits.count;
  }

 private:
  struct Slot {
    std::atomic<bool> ready{false};
    uint32_t id = 0;
    float distance = 0;
  };
  Slot& at(uint64_t position) { return slots_[position % kSlots]; }

  Slot slots_[kSlots];
  uint64_t asked_ = 0, returned_ = 0;
  alignas(128) std::atomic<uint64_t> next_{0};
  alignas(128) std::atomic<uint64_t> published_{0};
};

}  // namespace statepool::graph
