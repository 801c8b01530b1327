// Best-first search by one thread: the reference all engines are compared with.
#pragma once

#include <cstdint>

#include "pool.h"
#include "walk.h"

namespace statepool::graph {

// What a search did; distances counted, not timed.
struct Counts {
  uint64_t distances = 0;      // distance computations of all threads
  uint64_t most = 0;           // of the thread that did most
  uint64_t hops = 0;           // nodes expanded
  uint64_t thresholds = 0;     // times the shared threshold was lowered
  int threads = 1;
  bool truncated = false;
};

template <class Walk>
void take(Pool& pool, const Hits& hits, const Walk&) {
  for (int i = 0; i < hits.count; ++i) pool.insert(entry_of(hits.distances[i], hits.ids[i]));
}

// Expand the nearest candidate until all of the pool are expanded or `stop()` says so.
template <class Walk, class Stop>
void best_first(const Walk& walk, Pool& pool, Hits& hits, Counts& counts, Stop stop) {
  for (int i = pool.next(); i < pool.size(); i = pool.next()) {
    if (stop()) {
      counts.truncated = true;
      return;
    }
    pool.mark(i);
    walk.expand(id_of(pool.at(i)), hits);
    counts.distances += static_cast<uint64_t>(hits.count);
    ++counts.hops;
    take(pool, hits, walk);
    if (const int next = pool.next(); next < pool.size()) walk.fetch(id_of(pool.at(next)));
  }
}

}  // namespace statepool::graph
