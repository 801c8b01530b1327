// Curves on a triangulated closed surface: normal coordinates, their enumeration, geodesics and how often they cross.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace statepool::topology {

// Triangle i has sides 3i, 3i+1, 3i+2 in anticlockwise order; side s is opposite corner s.
struct Surface {
  std::vector<int32_t> across;  // [3m] the side on the other side of an edge
  std::vector<int32_t> edge;    // [3m]
  int edges = 0;
  int triangles() const { return static_cast<int>(across.size()) / 3; }
};

// The sides through which a strand enters triangles, and whether it then turns right; empty if weights make no curve.
struct Path {
  std::vector<int32_t> entry;
  std::vector<uint8_t> right;
};

// A walk along the component through the first strand; `length` of all strands tells whether it is the only one.
Path trace(const Surface& surface, const std::vector<int32_t>& weights);

// Connected curves with weights step * h, sum of h exactly `total`; not the link of the only vertex. False at the limit.
bool curves(const Surface& surface, int step, int total, size_t limit, int64_t budget, std::vector<int32_t>& found);

struct Metric {
  std::vector<double> matrix;  // [3m][2][4][2]: to the left, to the right; entries in two doubles
  std::vector<double> reach;   // [3m] tanh of half the side's length
};

// A closed geodesic: per triangle it passes, entry side and place on it, exit side and place on it.
struct Geodesic {
  std::vector<int32_t> entry, exit;
  std::vector<double> in, out;
  bool sure = false;  // precision sufficed
};

Geodesic geodesic(const Surface& surface, const Metric& metric, const Path& path);

// Crossings of two geodesics; -1 if some places are too close to tell.
int crossings(const Geodesic& one, const Geodesic& two, int triangles);

}  // namespace statepool::topology
