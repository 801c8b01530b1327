#include "triangulation.h"

#include <algorithm>
#include <numeric>

namespace statepool::topology {

Perms::Perms() {
  int count = 0;
  for (int a = 0; a < 4; ++a)
    for (int b = 0; b < 4; ++b)
      for (int c = 0; c < 4; ++c) {
        if (a == b || a == c || b == c) continue;
        const uint8_t images[4] = {uint8_t(a), uint8_t(b), uint8_t(c), uint8_t(6 - a - b - c)};
        std::copy(images, images + 4, image[count]);
        number[a][b][c] = static_cast<uint8_t>(count++);
      }
  for (int p = 0; p < 24; ++p) {
    uint8_t back[4] = {};
    for (int i = 0; i < 4; ++i) back[image[p][i]] = static_cast<uint8_t>(i);
    inverse[p] = number[back[0]][back[1]][back[2]];
    for (int q = 0; q < 24; ++q)
      product[p][q] = number[image[p][image[q][0]]][image[p][image[q][1]]][image[p][image[q][2]]];
  }
}

const Perms perms;

namespace {

int perm_of(const int* images) { return perms.number[images[0]][images[1]][images[2]]; }

// The permutation that sends from[i] to to[i].
int sending(const std::array<int, 4>& from, const std::array<int, 4>& to) {
  int images[4];
  for (int i = 0; i < 4; ++i) images[from[i]] = to[i];
  return perm_of(images);
}

int root(std::vector<int32_t>& parent, int i) {
  while (parent[i] != i) i = parent[i] = parent[parent[i]];
  return i;
}

}  // namespace

void Triangulation::glue(int t, int f, int u, int perm) {
  tets[t][f] = {u, perm};
  tets[u][at(perm, f)] = {t, perms.inverse[perm]};
}

int Triangulation::degree(int t, int x, int y, int most) const {
  int z = 0;
  while (z == x || z == y) ++z;
  int w = 6 - x - y - z, count = 0;
  const int start = t, ends[3] = {x, y, z};
  do {
    const Side side = tets[t][z];
    const int next_z = at(side.perm, w), next_w = at(side.perm, z);
    t = side.tet, x = at(side.perm, x), y = at(side.perm, y), z = next_z, w = next_w;
    if (++count > most) return count;
  } while (t != start || x != ends[0] || y != ends[1] || z != ends[2]);
  return count;
}

bool Triangulation::same_edge(int t, int x, int y, int u, int p, int q) const {
  int z = 0;
  while (z == x || z == y) ++z;
  int w = 6 - x - y - z;
  const int start = t, ends[3] = {x, y, z};
  do {
    if (t == u && ((x == p && y == q) || (x == q && y == p))) return true;
    const Side side = tets[t][z];
    const int next_z = at(side.perm, w), next_w = at(side.perm, z);
    t = side.tet, x = at(side.perm, x), y = at(side.perm, y), z = next_z, w = next_w;
  } while (t != start || x != ends[0] || y != ends[1] || z != ends[2]);
  return false;
}

Skeleton Triangulation::skeleton() const {
  const int n = size();
  Skeleton found;
  // directed edges: 12 per tetrahedron, so that an edge glued to its reverse shows
  std::vector<int32_t> directed(12 * n), corner(4 * n);
  std::iota(directed.begin(), directed.end(), 0);
  std::iota(corner.begin(), corner.end(), 0);
  const auto key = [](int t, int x, int y) { return 12 * t + 2 * edge_number[x][y] + (x > y); };
  for (int t = 0; t < n; ++t)
    for (int f = 0; f < 4; ++f) {
      const Side side = tets[t][f];
      for (int x = 0; x < 4; ++x) {
        if (x == f) continue;
        corner[root(corner, 4 * t + x)] = root(corner, 4 * side.tet + at(side.perm, x));
        for (int y = 0; y < 4; ++y)
          if (y != f && y != x)
            directed[root(directed, key(t, x, y))] = root(directed, key(side.tet, at(side.perm, x), at(side.perm, y)));
      }
    }
  found.edge.assign(6 * n, -1);
  std::vector<int32_t> name(12 * n, -1);
  for (int i = 0; i < 6 * n; ++i) {
    const int one = root(directed, 2 * i), other = root(directed, 2 * i + 1);
    if (one == other) found.valid = false;
    if (name[one] < 0) {
      name[one] = name[other] = static_cast<int32_t>(found.degree.size());
      found.degree.push_back(0);
    }
    found.edge[i] = name[one];
    ++found.degree[name[one]];
  }
  found.vertex.assign(4 * n, -1);
  std::vector<int32_t> called(4 * n, -1);
  for (int i = 0; i < 4 * n; ++i) {
    const int r = root(corner, i);
    if (called[r] < 0) {
      called[r] = static_cast<int32_t>(found.euler.size());
      found.euler.push_back(0);
    }
    found.vertex[i] = called[r];
  }
  // the link has a triangle per corner, 3/2 edges per triangle, a vertex per end of an edge
  std::vector<int32_t> triangles(found.euler.size(), 0);
  for (int i = 0; i < 4 * n; ++i) ++triangles[found.vertex[i]];
  for (size_t v = 0; v < triangles.size(); ++v) found.euler[v] = -triangles[v] / 2;
  std::vector<char> seen(found.degree.size(), 0);
  for (int i = 0; i < 6 * n; ++i)
    if (!seen[found.edge[i]]) {
      seen[found.edge[i]] = 1;
      for (const int end : edge_ends[i % 6]) ++found.euler[found.vertex[4 * (i / 6) + end]];
    }
  return found;
}

void Triangulation::drop(const std::vector<int>& removed) {
  std::vector<int> where(tets.size());
  int next = 0;
  for (int t = 0; t < size(); ++t)
    where[t] = std::find(removed.begin(), removed.end(), t) == removed.end() ? next++ : -1;
  for (int t = 0; t < size(); ++t)
    if (where[t] >= 0) {
      tets[where[t]] = tets[t];
      for (Side& side : tets[where[t]]) side.tet = where[side.tet];
    }
  tets.resize(next);
}

void Triangulation::replace(const std::vector<int>& removed, int fresh, const std::vector<Outer>& outer,
                            const std::vector<std::array<int, 4>>& inner) {
  const int first = size();
  tets.resize(first + fresh);
  for (const auto& [t, f, u, perm] : inner) glue(first + t, f, first + u, perm);
  std::vector<Side> before;
  for (const Outer& one : outer) before.push_back(tets[one.tet][one.face]);
  for (size_t i = 0; i < outer.size(); ++i) {
    const Outer& one = outer[i];
    int u = before[i].tet, perm = before[i].perm;
    const int face = at(perm, one.face);
    for (const Outer& other : outer)
      if (other.tet == u && other.face == face) {
        u = first + other.fresh;
        perm = perms.product[other.map][perm];
        break;
      }
    glue(first + one.fresh, at(one.map, one.face), u, perms.product[perm][perms.inverse[one.map]]);
  }
  drop(removed);
}

bool Triangulation::two_three(int t, int f) {
  const Side side = tets[t][f];
  const int u = side.tet, p = side.perm;
  if (u == t) return false;
  int base[3], count = 0;
  for (int v = 0; v < 4; ++v)
    if (v != f) base[count++] = v;
  std::vector<Outer> outer;
  std::vector<std::array<int, 4>> inner;
  for (int i = 0; i < 3; ++i) {
    const int x = base[i], y = base[i == 0 ? 1 : 0], z = base[i == 2 ? 1 : 2];
    outer.push_back({t, x, i, sending({f, x, y, z}, {0, 1, 2, 3})});
    outer.push_back({u, at(p, x), i, sending({at(p, x), at(p, f), at(p, y), at(p, z)}, {0, 1, 2, 3})});
    for (int j = i + 1; j < 3; ++j) {
      // the face of both that holds the new edge and the base vertex that neither omits
      const int shared = 3 - i - j;
      const auto place = [](int tet, int vertex) { return vertex == (tet == 0 ? 1 : 0) ? 2 : 3; };
      inner.push_back({i, place(i, j), j, sending({0, 1, place(i, shared), place(i, j)}, {0, 1, place(j, shared), place(j, i)})});
    }
  }
  replace({t, u}, 3, outer, inner);
  return true;
}

bool Triangulation::three_two(int t, int e) {
  const int x = edge_ends[e][0], y = edge_ends[e][1];
  int z = 0;
  while (z == x || z == y) ++z;
  const int w = 6 - x - y - z;
  if (degree(t, x, y, 3) != 3) return false;
  const int u = tets[t][z].tet, p = tets[t][z].perm;                    // (x, y, w, v) with v at p[z]
  const int s = tets[u][at(p, w)].tet;                                  // (x, y, v, z)
  const int q = perms.product[tets[u][at(p, w)].perm][p];               // t's x, y to s; z to s's v; w to s's z
  if (t == u || u == s || t == s) return false;
  std::vector<Outer> outer;
  for (int side = 0; side < 2; ++side) {  // apex x, then apex y; vertices apex, z, w, v
    const int apex = side ? y : x, other = side ? x : y;
    outer.push_back({t, other, side, sending({apex, z, w, other}, {0, 1, 2, 3})});
    outer.push_back({u, at(p, other), side, sending({at(p, apex), at(p, other), at(p, w), at(p, z)}, {0, 1, 2, 3})});
    outer.push_back({s, at(q, other), side, sending({at(q, apex), at(q, w), at(q, other), at(q, z)}, {0, 1, 2, 3})});
  }
  replace({t, u, s}, 2, outer, {{0, 0, 1, 0}});
  return true;
}

bool Triangulation::two_zero(int t, int e) {
  const int x = edge_ends[e][0], y = edge_ends[e][1];
  int z = 0;
  while (z == x || z == y) ++z;
  const int w = 6 - x - y - z;
  if (degree(t, x, y, 2) != 2) return false;
  const int u = tets[t][z].tet, p = tets[t][z].perm;
  if (t == u || same_edge(t, z, w, u, at(p, z), at(p, w))) return false;
  for (const int end : {x, y})
    for (const int out : {tets[t][end].tet, tets[u][at(p, end)].tet})
      if (out == t || out == u) return false;
  for (const int end : {x, y}) {
    const Side one = tets[t][end], two = tets[u][at(p, end)];
    glue(one.tet, at(one.perm, end), two.tet, perms.product[two.perm][perms.product[p][perms.inverse[one.perm]]]);
  }
  drop({t, u});
  return true;
}

bool Triangulation::apply(const Move& move) {
  if (move.kind == 0) return two_three(move.tet, move.place);
  return move.kind == 1 ? three_two(move.tet, move.place) : two_zero(move.tet, move.place);
}

}  // namespace statepool::topology
