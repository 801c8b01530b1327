// What one thread of a query owns, and the little it shows the others.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "counts.h"
#include "crew.h"
#include "pool.h"
#include "scan.h"
#include "walk.h"

namespace statepool::graph {

// Candidates on their way from a thread with plenty to one with none. One word says whose turn it is, so no one waits.
struct Mailbox {
  enum State : uint32_t { kClosed, kWanted, kFilling, kFull };
  static constexpr int kRoom = 32;
  std::atomic<uint32_t> state{kClosed};
  int count = 0;
  Entry items[kRoom];
};

// What a thread shows of its candidates: every so-manyth distance code of its sorted pool, on two cache lines. The n-th
// sample says that n * stride candidates are no farther. A pool's n-th best only gets better, so samples of different
// moments can be read together and no lock is needed.
class Board {
 public:
  static constexpr int kSamples = 32;

  static int stride(int width) { return (width + kSamples - 1) / kSamples; }
  void reset() {
    for (auto& sample : samples_) sample.store(code_of(kNoBound), std::memory_order_relaxed);
  }
  void publish(const Pool& pool, int width) {
    const int step = stride(width);
    for (int i = 0, at = step - 1; at < width; ++i, at += step)
      samples_[i].store(code_of(pool.at(at)), std::memory_order_relaxed);
  }
  int32_t sample(int i) const { return samples_[i].load(std::memory_order_relaxed); }

 private:
  std::atomic<int32_t> samples_[kSamples];
};

// Test only: naps at the places where threads meet, so that orders nobody would see otherwise happen.
class Jitter {
 public:
  void seed(uint64_t value) { state_ = value; }
  void maybe() {
    if (state_ == 0) return;
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    if (state_ % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(state_ / 64 % 100));
    else if (state_ % 16 == 1) std::this_thread::yield();
  }

 private:
  uint64_t state_ = 0;
};

struct alignas(128) Lane {
  Pool pool;
  Visited own;  // what this thread expanded, where the shared set is asked only before an expansion
  Pool best;    // exact distances of what was expanded, where the pool holds estimates
  Hits hits;
  Counts counts;
  Jitter jitter;
  alignas(128) Mailbox mailbox;
  alignas(128) Board board;

  std::atomic<bool> left{false};  // its thread was called back; the open candidates are for whoever runs out
  bool begun = false;

  // The caller's part, before there are helpers. The rest is done by the thread that has the lane, in its own cache.
  void reset(uint64_t jitter_seed) {
    begun = false;
    left.store(false, std::memory_order_relaxed);
    counts = Counts();
    mailbox.state.store(Mailbox::kClosed, std::memory_order_relaxed);
    board.reset();
    jitter.seed(jitter_seed);
  }
  void begin(int width, int kept) {
    pool.reset(width);
    best.reset(kept);
    begun = true;
  }
};

// Hits up to `bound` go into the pool.
inline void keep(Lane& lane, Entry bound) {
  Entry keys[kMostDegree];
  int count = 0;
  for (int i = 0; i < lane.hits.count; ++i) {
    keys[count] = entry_of(lane.hits.distances[i], lane.hits.ids[i]);
    count += keys[count] <= bound;
  }
  lane.pool.insert(keys, count);
}

// The nearest candidate up to `bound` that this thread did not expand, on its way from memory; kNone if there is none.
template <class Walk>
uint32_t pick(const Walk& walk, Lane& lane, Entry bound) {
  for (int i = lane.pool.next(); i < lane.pool.size(); i = lane.pool.next()) {
    if (lane.pool.at(i) > bound) return kNone;
    const uint32_t node = id_of(lane.pool.at(i));
    lane.pool.mark(i);
    if (Walk::kEstimates && lane.own.seen(node)) continue;  // met twice, at two estimates
    walk.fetch(node);
    return node;
  }
  return kNone;
}

// Expand one candidate unless another thread did: count, keep the exact distance if the walk has estimates only, put hits up to `bound` into the pool.
template <class Walk>
void visit(const Walk& walk, Lane& lane, uint32_t node, Entry bound) {
  if (Walk::kEstimates && !lane.own.claim(node)) return;
  if (!walk.open(node)) return;
  const float limit = distance_of(std::min(bound, lane.pool.bound()));
  if constexpr (Walk::kEstimates) {
    walk.expand(node, limit, lane.own, lane.hits);
  } else {
    walk.expand(node, lane.hits);
  }
  lane.counts.distances += static_cast<uint64_t>(Walk::kEstimates ? kScanLanes + 1 : lane.hits.count);
  ++lane.counts.hops;
  if constexpr (Walk::kEstimates)
    if (walk.answers(node)) lane.best.insert(entry_of(lane.hits.own, node));
  keep(lane, bound);
}

}  // namespace statepool::graph
