// Ideal triangulations as gluings of tetrahedra, and the moves that keep the manifold.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <vector>

namespace statepool::topology {

// The 24 permutations of four letters in lexicographic order.
struct Perms {
  uint8_t image[24][4];
  uint8_t product[24][24];  // product[p][q] sends i to p[q[i]]
  uint8_t inverse[24];
  uint8_t number[4][4][4];  // of the permutation that begins with these three images
  Perms();
};
extern const Perms perms;

inline int at(int perm, int i) { return perms.image[perm][i]; }

constexpr int edge_number[4][4] = {{-1, 0, 1, 2}, {0, -1, 3, 4}, {1, 3, -1, 5}, {2, 4, 5, -1}};
constexpr int edge_ends[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

struct Side {
  int32_t tet = -1;
  int32_t perm = 0;
};

struct Move {
  int32_t kind, tet, place;  // 0: 2-3 at a face, 1: 3-2 at an edge, 2: 2-0 at an edge
};

// Classes of edges and vertices.
struct Skeleton {
  std::vector<int32_t> edge;    // [6n]
  std::vector<int32_t> vertex;  // [4n]
  std::vector<int32_t> degree;  // per edge class
  std::vector<int32_t> euler;   // of the link, per vertex class
  bool valid = true;            // no edge is glued to itself backwards
};

class Triangulation {
 public:
  std::vector<std::array<Side, 4>> tets;

  int size() const { return static_cast<int>(tets.size()); }
  void glue(int t, int f, int u, int perm);
  int degree(int t, int x, int y, int most) const;  // at most `most` + 1
  bool same_edge(int t, int x, int y, int u, int z, int w) const;
  Skeleton skeleton() const;

  bool apply(const Move& move);
  bool two_three(int t, int f);
  bool three_two(int t, int e);
  bool two_zero(int t, int e);

 private:
  struct Outer {
    int tet, face, fresh, map;  // an outer face of what is removed, and where its vertices are in a new tetrahedron
  };
  void replace(const std::vector<int>& removed, int fresh, const std::vector<Outer>& outer,
               const std::vector<std::array<int, 4>>& inner);
  void drop(const std::vector<int>& removed);
};

using Random = std::mt19937_64;

// Fewer tetrahedra, by 2-0 and 3-2 moves and detours over 2-3 moves; what was done is appended to `log`.
void simplify(Triangulation& tri, Random& random, int patience, std::vector<Move>& log);
// Another triangulation of about the same size: some 2-3 moves, then simplify.
void shake(Triangulation& tri, Random& random, int ups, int patience, std::vector<Move>& log);

// A step of the curve that a collapsed edge leaves behind: along the edge of the link at vertex `corner` of `tet` that
// lies on `face`, from the link vertex `from` to `to`.
struct Step {
  int32_t tet, corner, face, from, to;
};
// Drill out the arc that is edge e of tetrahedron t and joins two vertices: true, and the meridian, if the tetrahedra
// around it can be folded flat.
bool collapse(Triangulation& tri, int t, int e, std::vector<Step>& meridian);

Triangulation attach(const Triangulation& tri, const std::vector<int32_t>& weights);

}  // namespace statepool::topology
