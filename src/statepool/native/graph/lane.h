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

// The best candidates a thread knows of, for others to read while it goes on. A reader that meets a write gets nothing.
class Board {
 public:
  void reset(int capacity) {
    if (static_cast<int>(slots_.size()) < capacity) slots_ = std::vector<std::atomic<Entry>>(static_cast<size_t>(capacity));
    count_.store(0, std::memory_order_relaxed);
  }
  void publish(const Entry* entries, int count) {
    const uint32_t version = version_.load(std::memory_order_relaxed);
    version_.store(version + 1, std::memory_order_relaxed);
    for (int i = 0; i < count; ++i) slots_[static_cast<size_t>(i)].store(entries[i], std::memory_order_release);
    count_.store(count, std::memory_order_release);
    version_.store(version + 2, std::memory_order_release);
  }
  // Entries copied to `out`, 0 if none or if the owner was writing.
  int read(Entry* out) const {
    const uint32_t before = version_.load(std::memory_order_acquire);
    if (before & 1u) return 0;
    const int count = count_.load(std::memory_order_acquire);
    for (int i = 0; i < count; ++i) out[i] = slots_[static_cast<size_t>(i)].load(std::memory_order_acquire);
    return version_.load(std::memory_order_relaxed) == before ? count : 0;
  }

 private:
  std::atomic<uint32_t> version_{0};
  std::atomic<int> count_{0};
  std::vector<std::atomic<Entry>> slots_;
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
  Pool best;  // exact distances of what was expanded, where the pool holds estimates
  Hits hits;
  Counts counts;
  Jitter jitter;
  std::vector<Entry> known, merged, heard;  // asynchronous search: the best candidates anyone is known to have
  int known_count = 0;
  int turn = 0;  // whose board is read next
  alignas(128) Mailbox mailbox;
  alignas(128) Board board;

  void reset(int width, int kept, uint64_t jitter_seed) {
    pool.reset(width);
    best.reset(kept);
    counts = Counts();
    known_count = 0;
    turn = 0;
    mailbox.state.store(Mailbox::kClosed, std::memory_order_relaxed);
    board.reset(width);
    jitter.seed(jitter_seed);
    const size_t room = static_cast<size_t>(width) + 1;
    if (known.size() < room) {
      known.resize(room);
      merged.resize(room);
      heard.resize(room);
    }
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

// The nearest candidate up to `bound` that nobody expanded, on its way from memory; kNone if there is none.
template <class Walk>
uint32_t pick(const Walk& walk, Lane& lane, Entry bound) {
  for (int i = lane.pool.next(); i < lane.pool.size(); i = lane.pool.next()) {
    if (lane.pool.at(i) > bound) return kNone;
    const uint32_t node = id_of(lane.pool.at(i));
    lane.pool.mark(i);
    if (!walk.open(node)) continue;
    walk.fetch(node);
    return node;
  }
  return kNone;
}

// Expand one candidate: count, keep the exact distance if the walk has estimates only, put hits up to `bound` into the pool.
template <class Walk>
void visit(const Walk& walk, Lane& lane, uint32_t node, Entry bound) {
  walk.expand(node, distance_of(std::min(bound, lane.pool.bound())), lane.hits);
  lane.counts.distances += static_cast<uint64_t>(Walk::kEstimates ? kScanLanes + 1 : lane.hits.count);
  ++lane.counts.hops;
  if constexpr (Walk::kEstimates) lane.best.insert(entry_of(lane.hits.own, node));
  keep(lane, bound);
}

}  // namespace statepool::graph
