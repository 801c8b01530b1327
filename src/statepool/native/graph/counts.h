// What a search did, in counts that no machine changes.
#pragma once

#include <cstdint>

namespace statepool::graph {

struct Counts {
  uint64_t distances = 0;      // distance computations of all threads
  uint64_t most = 0;           // of the thread that did most
  uint64_t hops = 0;           // nodes expanded
  uint64_t thresholds = 0;     // times the shared threshold was lowered
  int threads = 1;
  bool truncated = false;
};

}  // namespace statepool::graph
