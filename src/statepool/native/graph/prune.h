// Choosing a node's neighbours from candidates (robust prune: DiskANN, NeurIPS 2019, algorithm 2).
#pragma once

#include <algorithm>
#include <vector>

#include "entry.h"
#include "segment.h"

namespace statepool::graph {

// Append to `chosen` from `candidates`, which are sorted by their squared distance to `node`: a candidate stays unless one
// chosen before equals it or is more than `alpha` times nearer to it than the node is. Copies of the node itself cover nothing
// and take a quarter of the list. What `chosen` holds already stays. `other` has room for a row.
inline void prune(const Segment& segment, uint32_t node, const std::vector<Entry>& candidates, float alpha, float* other,
                  std::vector<uint32_t>& chosen) {
  constexpr size_t kBlock = 3;  // most candidates are covered by one of the first
  const size_t most = static_cast<size_t>(segment.degree), given = chosen.size();
  const float square = alpha * alpha;
  size_t copies = 0;
  float gaps[kBlock];
  for (const Entry candidate : candidates) {
    if (chosen.size() >= most) break;
    const uint32_t id = id_of(candidate);
    if (id == node) continue;
    if (std::find(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(given), id) !=
        chosen.begin() + static_cast<std::ptrdiff_t>(given))
      continue;
    const float own = distance_of(candidate);
    const float* from = segment.floats(id, other);
    bool covered = own == 0 && copies++ >= most / 4;
    for (size_t i = 0; own > 0 && i < chosen.size() && !covered; i += kBlock) {
      const int some = static_cast<int>(std::min<size_t>(kBlock, chosen.size() - i));
      segment.squared(from, chosen.data() + i, some, gaps);
      for (int k = 0; k < some; ++k) covered |= square * gaps[k] < own || gaps[k] == 0;
    }
    if (!covered) chosen.push_back(id);
  }
}

}  // namespace statepool::graph
