// One query on its way through an engine: what all of its threads share.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "cores.h"
#include "lane.h"

namespace statepool::graph {

enum class Engine : int { sequential = 0, edge = 1, iqan = 2, nosync = 3, async = 4, roles = 5 };

struct Request {
  int k = 10;
  int kept = 10;            // exact distances kept to choose the k from, where pools hold estimates
  int width = 64;           // capacity of the candidate pool (ef)
  int threads = 1;
  Engine engine = Engine::async;
  int64_t deadline_ns = 0;  // 0: none
  int local_hops = 8;       // iQAN: most expansions of a thread between two joins; async: between two looks at the others
  uint64_t jitter = 0;      // test only: seed of the naps
  Lease* lease = nullptr;   // how many of the threads it may use by now; null: all
  bool granted = false;     // whether Cores counts the threads
};

// The lanes of a query; kept from one query to the next.
struct Query {
  Request request;
  std::vector<std::unique_ptr<Lane>> lanes;
  int64_t end_ns = 0;
  std::atomic<bool> stop{false};

  void reset(const Request& wanted) {
    request = wanted;
    while (lanes.size() < static_cast<size_t>(wanted.threads)) lanes.push_back(std::make_unique<Lane>());
    for (int i = 0; i < wanted.threads; ++i) {
      const uint64_t seed = wanted.jitter == 0 ? 0 : wanted.jitter * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(i) + 1;
      lane(i).reset(seed);
    }
    end_ns = wanted.deadline_ns == 0 ? 0 : now_ns() + wanted.deadline_ns;
    stop.store(false, std::memory_order_relaxed);
  }
  Lane& lane(int i) { return *lanes[static_cast<size_t>(i)]; }
  // Asked before every expansion; true once the deadline has passed.
  bool late() {
    if (end_ns == 0) return false;
    if (stop.load(std::memory_order_relaxed)) return true;
    if (now_ns() <= end_ns) return false;
    stop.store(true, std::memory_order_relaxed);
    return true;
  }
};

// Put the share of lane `i`, one of `parts`, in the entry points into its pool.
template <class Walk>
void enter(const Walk& walk, Query& query, int i, int parts) {
  Lane& lane = query.lane(i);
  lane.begin(query.request.width, query.request.kept);
  if constexpr (Walk::kEstimates) {
    lane.own.reset(walk.segment.source().size() + 1);
    walk.enter(i, parts, lane.own, lane.hits);
  } else {
    walk.enter(i, parts, lane.hits);
  }
  lane.counts.distances += static_cast<uint64_t>(lane.hits.count);
  keep(lane, kNoBound);
}

// Best-first search in one lane, at most `hops` expansions of candidates up to `bound`.
template <class Walk>
void search_alone(const Walk& walk, Query& query, Lane& lane, uint64_t hops, Entry bound) {
  const uint64_t last = lane.counts.hops + hops;
  uint32_t node = pick(walk, lane, bound);
  while (node != kNone && !query.late()) {
    const bool more = lane.counts.hops + 1 < last;
    uint32_t next = Walk::kAhead && more ? pick(walk, lane, bound) : kNone;
    visit(walk, lane, node, bound);
    if (next == kNone && more) next = pick(walk, lane, bound);
    node = next;
    lane.jitter.maybe();
  }
}

}  // namespace statepool::graph
