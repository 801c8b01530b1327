#include <algorithm>
#include <numeric>

#include "triangulation.h"

namespace statepool::topology {

namespace {

int below(Random& random, int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); }

// 2-0 and 3-2 moves until there is none.
void descend(Triangulation& tri, std::vector<Move>& log) {
  bool changed = true;
  while (changed) {
    changed = false;
    for (int t = 0; t < tri.size() && !changed; ++t)
      for (int e = 0; e < 6 && !changed; ++e) {
        const int degree = tri.degree(t, edge_ends[e][0], edge_ends[e][1], 3);
        const Move move{degree == 2 ? 2 : 1, t, e};
        if ((degree == 2 || degree == 3) && tri.apply(move)) {
          log.push_back(move);
          changed = true;
        }
      }
  }
}

// A 2-3 move, at an edge of degree four or less where one is met, and what follows from it.
bool detour(Triangulation& tri, Random& random, std::vector<Move>& log) {
  const int t = below(random, tri.size()), f = below(random, 4);
  const Move up{0, t, f};
  if (!tri.apply(up)) return false;
  log.push_back(up);
  // any 3-2 or 2-0 move but the inverse, whose edge joins vertices 0 and 1 of the last three tetrahedra
  std::vector<Move> downs;
  for (int s = 0; s < tri.size(); ++s)
    for (int e = 0; e < 6; ++e) {
      if (s >= tri.size() - 3 && e == 0) continue;
      const int degree = tri.degree(s, edge_ends[e][0], edge_ends[e][1], 3);
      if (degree == 2 || degree == 3) downs.push_back({degree == 2 ? 2 : 1, s, e});
    }
  while (!downs.empty()) {
    const int pick = below(random, static_cast<int>(downs.size()));
    if (tri.apply(downs[pick])) {
      log.push_back(downs[pick]);
      return true;
    }
    downs.erase(downs.begin() + pick);
  }
  return false;
}

}  // namespace

void simplify(Triangulation& tri, Random& random, int patience, std::vector<Move>& log) {
  descend(tri, log);
  for (int idle = 0; idle < patience && tri.size() > 1;) {
    Triangulation trial = tri;
    std::vector<Move> steps;
    ++idle;
    if (!detour(trial, random, steps)) continue;
    descend(trial, steps);
    if (trial.size() > tri.size()) continue;
    if (trial.size() < tri.size()) idle = 0;
    tri = std::move(trial);
    log.insert(log.end(), steps.begin(), steps.end());
  }
}

void shake(Triangulation& tri, Random& random, int ups, int patience, std::vector<Move>& log) {
  for (int i = 0; i < ups; ++i) {
    const Move up{0, below(random, tri.size()), below(random, 4)};
    if (tri.apply(up)) log.push_back(up);
  }
  simplify(tri, random, patience, log);
}

bool collapse(Triangulation& tri, int t, int e, std::vector<Step>& meridian) {
  const Skeleton before = tri.skeleton();
  int x = edge_ends[e][0], y = edge_ends[e][1], z = 0;
  if (before.vertex[4 * t + x] == before.vertex[4 * t + y]) return false;
  while (z == x || z == y) ++z;
  int w = 6 - x - y - z;
  struct Around {
    int tet, x, y, z, w;
  };
  std::vector<Around> ring;
  std::vector<int> place(tri.size(), -1);
  const int start = t;
  do {
    if (place[t] >= 0) return false;
    place[t] = static_cast<int>(ring.size());
    ring.push_back({t, x, y, z, w});
    const Side side = tri.tets[t][z];
    const int next_z = at(side.perm, w), next_w = at(side.perm, z);
    t = side.tet, x = at(side.perm, x), y = at(side.perm, y), z = next_z, w = next_w;
  } while (t != start);
  const int d = static_cast<int>(ring.size());
  if (d != before.degree[before.edge[6 * start + e]] || d >= tri.size()) return false;
  // Follow a face of the ring outwards, through other folded tetrahedra if need be.
  const auto outwards = [&](int tet, int face) {
    Side side{tet, 0};
    int images = 0;  // the identity
    for (int guard = 0; guard <= d; ++guard) {
      const Side next = tri.tets[side.tet][face];
      images = perms.product[next.perm][images];
      face = at(next.perm, face);
      side.tet = next.tet;
      if (place[side.tet] < 0) return Side{side.tet, images};
      const Around& here = ring[place[side.tet]];
      // folding swaps the ends of the edge
      const int swap = [&] {
        int p[4] = {0, 1, 2, 3};
        std::swap(p[here.x], p[here.y]);
        return int(perms.number[p[0]][p[1]][p[2]]);
      }();
      images = perms.product[swap][images];
      face = at(swap, face);
    }
    return Side{-1, 0};
  };
  struct Join {
    Side one, two;
    int face, swap;
  };
  std::vector<Join> joins;
  meridian.clear();
  for (const Around& here : ring) {
    const Side one = outwards(here.tet, here.y), two = outwards(here.tet, here.x);
    if (one.tet < 0 || two.tet < 0) return false;
    int p[4] = {0, 1, 2, 3};
    std::swap(p[here.x], p[here.y]);
    joins.push_back({one, two, here.y, perms.number[p[0]][p[1]][p[2]]});
    meridian.push_back({one.tet, at(one.perm, here.x), at(one.perm, here.y), at(one.perm, here.z), at(one.perm, here.w)});
  }
  Triangulation result = tri;
  for (const Join& join : joins)
    result.glue(join.one.tet, at(join.one.perm, join.face), join.two.tet,
                perms.product[join.two.perm][perms.product[join.swap][perms.inverse[join.one.perm]]]);
  std::vector<int> removed, shift(tri.size(), 0);
  for (const Around& here : ring) removed.push_back(here.tet);
  for (int s = 0, gone = 0; s < tri.size(); ++s) {
    shift[s] = gone;
    gone += place[s] >= 0;
  }
  for (Step& step : meridian) step.tet -= shift[step.tet];
  std::vector<std::array<Side, 4>> kept;
  for (int s = 0; s < tri.size(); ++s)
    if (place[s] < 0) {
      kept.push_back(result.tets[s]);
      for (Side& side : kept.back()) side.tet -= shift[side.tet];
    }
  result.tets = std::move(kept);
  // Sheets of the spine stay discs exactly if each of the d foldings joins two different edges.
  const Skeleton after = result.skeleton();
  if (!after.valid || after.degree.size() + d + 1 != before.degree.size()) return false;
  tri = std::move(result);
  return true;
}

}  // namespace statepool::topology
