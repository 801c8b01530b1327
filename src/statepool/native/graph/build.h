// Building the graph of a segment (Vamana: Subramanya et al., DiskANN, NeurIPS 2019, algorithms 2 and 3).
#pragma once

#include <atomic>
#include <cstdint>

#include "segment.h"

namespace statepool::graph {

struct BuildOptions {
  int window = 150;     // candidates a node's neighbours are chosen from
  float alpha = 1.2f;   // how much shorter a detour must be to replace an edge
  int threads = 1;
  uint64_t seed = 0;
  std::atomic<uint64_t>* progress = nullptr;  // nodes inserted so far
};

// Link all rows of `segment`, which has no links yet. Nodes are inserted in batches against the frozen graph of those
// before, so the result does not depend on the number of threads.
void build(Segment& segment, const BuildOptions& options);

}  // namespace statepool::graph
