// The 2-handle: the dual spine with a disc along the curve, and its dual triangulation. The order and the labels of the
// new tetrahedra are those of statepool.tasks.topology.checker, which says what they mean.
#include <algorithm>
#include <cstdlib>

#include "triangulation.h"

namespace statepool::topology {

namespace {

struct Point {
  int face, corner;  // the curve crosses the triple line of this face, on the side of this vertex
};

struct Stop {
  int point, other;  // a crossing on the boundary of a sheet; the vertex at the other end of the sheet's edge
  bool top, forward;
};

struct Half {
  int tet, labels[3];
};

class Spine {
 public:
  Spine(const Triangulation& tri, const std::vector<int32_t>& weights) : tri_(tri), n_(tri.size()) {
    weigh(weights);
    place();
    result_.tets.resize(n_ + points_.size());
    for (size_t face = 0; face < reps_.size(); ++face) line(static_cast<int>(face));
    trace();
    std::vector<char> seen(6 * n_, 0);
    for (int t = 0; t < n_; ++t)
      for (int e = 0; e < 6; ++e)
        if (!seen[6 * t + e]) sheet(t, e, seen);
  }

  Triangulation result() { return std::move(result_); }

 private:
  struct Rep {
    int tet, face;
  };

  int32_t& weight(int t, int v, int f) { return weight_[16 * t + 4 * v + f]; }

  // Strands around corner x of link triangle (t, v).
  int corner(int t, int v, int x) {
    int sum = -2 * weight(t, v, x);
    for (int f = 0; f < 4; ++f)
      if (f != v) sum += weight(t, v, f);
    return sum / 2;
  }

  void weigh(const std::vector<int32_t>& weights) {
    weight_.assign(16 * n_, -1);
    owner_.assign(4 * n_, -1);
    int count = 0;
    for (int t = 0; t < n_; ++t)
      for (int v = 0; v < 4; ++v)
        for (int f = 0; f < 4; ++f)
          if (v != f && weight(t, v, f) < 0) {
            const Side side = tri_.tets[t][f];
            weight(t, v, f) = weight(side.tet, at(side.perm, v), at(side.perm, f)) = weights[count++];
          }
    for (int t = 0; t < n_; ++t)
      for (int f = 0; f < 4; ++f)
        if (owner_[4 * t + f] < 0) {
          const Side side = tri_.tets[t][f];
          owner_[4 * t + f] = owner_[4 * side.tet + at(side.perm, f)] = static_cast<int>(reps_.size());
          reps_.push_back({t, f});
        }
  }

  // Counts of strands around the lower vertex b on both sides of a face, at its vertex a.
  struct Turn {
    int b, c, here, there, total;
  };
  Turn turn(int face, int a) {
    const auto [t, f] = reps_[face];
    const Side side = tri_.tets[t][f];
    Turn found{};
    while (found.b == a || found.b == f) ++found.b;
    found.c = 6 - a - f - found.b;
    found.here = corner(t, a, found.b);
    found.there = corner(side.tet, at(side.perm, a), at(side.perm, found.b));
    found.total = weight(t, a, f);
    return found;
  }

  void place() {
    struct Item {
      int64_t top, bottom;
      int a, j;
    };
    lines_.resize(reps_.size());
    std::vector<std::vector<int>> numbers(4 * reps_.size());
    for (size_t face = 0; face < reps_.size(); ++face) {
      std::vector<Item> here;
      for (int a = 0; a < 4; ++a) {
        if (a == reps_[face].face) continue;
        const Turn at_a = turn(static_cast<int>(face), a);
        const int count = std::abs(at_a.here - at_a.there);
        for (int j = 0; j < count; ++j) here.push_back({2 * j + 1, 2 * count, a, j});
        numbers[4 * face + a].resize(count);
      }
      std::sort(here.begin(), here.end(), [](const Item& one, const Item& two) {
        const int64_t left = one.top * two.bottom, right = two.top * one.bottom;
        return left != right ? left < right : one.a < two.a;
      });
      for (const Item& item : here) {
        numbers[4 * face + item.a][item.j] = static_cast<int>(points_.size());
        lines_[face].push_back(static_cast<int>(points_.size()));
        points_.push_back({static_cast<int>(face), item.a});
      }
    }
    numbers_ = std::move(numbers);
  }

  void glue(const Half& one, const Half& two) {
    int images[4];
    int f = 6, g = 6;
    for (int i = 0; i < 3; ++i) {
      images[one.labels[i]] = two.labels[i];
      f -= one.labels[i];
      g -= two.labels[i];
    }
    images[f] = g;
    result_.glue(one.tet, f, two.tet, perms.number[images[0]][images[1]][images[2]]);
  }

  // The name of the region at vertex v of the face in the tetrahedron of a crossing point.
  int label(int point, int v, bool after) const {
    const auto [face, a] = points_[point];
    if (v == a) return after;
    int b = 0;
    while (b == a || b == reps_[face].face) ++b;
    return v == b ? 2 : 3;
  }

  void line(int face) {
    const auto [t, f] = reps_[face];
    const int p = tri_.tets[t][f].perm;
    int base[3], count = 0;
    for (int v = 0; v < 4; ++v)
      if (v != f) base[count++] = v;
    const auto half = [&](int point, bool after) {
      return Half{n_ + point, {label(point, base[0], after), label(point, base[1], after), label(point, base[2], after)}};
    };
    Half last{t, {base[0], base[1], base[2]}};
    for (const int point : lines_[face]) {
      glue(last, half(point, false));
      last = half(point, true);
    }
    glue(last, {tri_.tets[t][f].tet, {at(p, base[0]), at(p, base[1]), at(p, base[2])}});
  }

  // Follow a strand around corner c of link triangle (t, v), from side f, to where it leaves that corner's cell.
  std::pair<int, int> follow(int t, int v, int f, int c, int depth) {
    while (true) {
      const int g = 6 - v - c - f;
      const Side side = tri_.tets[t][g];
      const int face = owner_[4 * t + g];
      const bool own = reps_[face].tet == t && reps_[face].face == g;
      const int a = own ? v : at(side.perm, v), cell = own ? c : at(side.perm, c);
      const Turn here = turn(face, a);
      const int p = cell == here.b ? depth : here.total - 1 - depth;
      if (std::min(here.here, here.there) <= p && p < std::max(here.here, here.there)) {
        const int j = here.here > here.there ? here.here - 1 - p : p - here.here;
        return {numbers_[4 * face + a][j], cell};
      }
      t = side.tet, v = at(side.perm, v), f = at(side.perm, g), c = at(side.perm, c);
    }
  }

  // For each crossing point and each of its two sheets the crossing at the other end of the strand.
  void trace() {
    partner_.assign(4 * points_.size(), {-1, -1});
    for (size_t face = 0; face < reps_.size(); ++face)
      for (int a = 0; a < 4; ++a) {
        const int count = static_cast<int>(numbers_[4 * face + a].size());
        if (count == 0) continue;
        const auto [t, f] = reps_[face];
        const Side side = tri_.tets[t][f];
        const Turn here = turn(static_cast<int>(face), a);
        const bool more = here.here > here.there;
        const int in = more ? here.b : here.c, out = more ? here.c : here.b;
        for (int j = 0; j < count; ++j) {
          const int p = more ? here.here - 1 - j : here.here + j;
          const auto depth = [&](int cell) { return cell == here.b ? p : here.total - 1 - p; };
          const int point = numbers_[4 * face + a][j];
          partner_[4 * point + in] = follow(t, a, f, in, depth(in));
          partner_[4 * point + out] = follow(side.tet, at(side.perm, a), at(side.perm, f), at(side.perm, out), depth(out));
        }
      }
  }

  void sheet(int t, int e, std::vector<char>& seen) {
    int x = edge_ends[e][0], y = edge_ends[e][1], z = 0;
    while (z == x || z == y) ++z;
    int w = 6 - x - y - z;
    const int start = t, ends[3] = {x, y, z};
    std::vector<Stop> stops;
    do {
      seen[6 * t + edge_number[x][y]] = 1;
      const Side side = tri_.tets[t][z];
      const int face = owner_[4 * t + z];
      const bool forward = reps_[face].tet == t && reps_[face].face == z;
      const int fx = forward ? x : at(side.perm, x), fy = forward ? y : at(side.perm, y);
      const std::vector<int>& row = lines_[face];
      for (size_t i = 0; i < row.size(); ++i) {
        const int point = forward ? row[i] : row[row.size() - 1 - i];
        const int a = points_[point].corner;
        if (a == fx || a == fy) stops.push_back({point, a == fx ? fy : fx, a == fx, forward});
      }
      const int next_z = at(side.perm, w), next_w = at(side.perm, z);
      t = side.tet, x = at(side.perm, x), y = at(side.perm, y), z = next_z, w = next_w;
    } while (t != start || x != ends[0] || y != ends[1] || z != ends[2]);
    fill(stops);
  }

  struct Chord {
    int from, to;
    bool inside(int i) const { return from < i && i < to; }
  };

  Half end(const Stop& stop, bool last) const {
    // inside a chord is what follows its start and comes before its end, in the order of the walk
    const int inner = last != stop.forward;
    return {n_ + stop.point, {inner, 1 - inner, label(stop.point, stop.other, false)}};
  }

  void fill(const std::vector<Stop>& stops) {
    std::vector<Chord> chords[2];  // top, bottom
    for (int i = 0; i < static_cast<int>(stops.size()); ++i) {
      const auto mate = partner_[4 * stops[i].point + stops[i].other];
      for (int j = i + 1; j < static_cast<int>(stops.size()); ++j)
        if (stops[j].point == mate.first && stops[j].other == mate.second) chords[!stops[i].top].push_back({i, j});
    }
    const int width = static_cast<int>(chords[1].size());
    std::vector<int> tet(chords[0].size() * width, -1);
    for (size_t s = 0; s < chords[0].size(); ++s)
      for (int k = 0; k < width; ++k)
        if (chords[0][s].inside(chords[1][k].from) != chords[0][s].inside(chords[1][k].to)) {
          tet[s * width + k] = result_.size();
          result_.tets.emplace_back();
        }
    for (int level = 0; level < 2; ++level)
      for (size_t s = 0; s < chords[level].size(); ++s) {
        const Chord& mine = chords[level][s];
        std::vector<std::pair<int, size_t>> met;
        for (size_t k = 0; k < chords[1 - level].size(); ++k)
          if (tet[level ? k * width + s : s * width + k] >= 0) {
            const Chord& other = chords[1 - level][k];
            met.emplace_back(mine.inside(other.from) ? other.from : other.to, k);
          }
        std::sort(met.begin(), met.end());
        const int own = level ? 2 : 0, far = 2 - own;
        Half last = end(stops[mine.from], false);
        for (const auto& [at_stop, k] : met) {
          const int here = tet[level ? k * width + s : s * width + k];
          const int outside = !chords[1 - level][k].inside(mine.from);
          glue(last, {here, {own, own + 1, far + outside}});
          last = {here, {own, own + 1, far + 1 - outside}};
        }
        glue(last, end(stops[mine.to], true));
      }
  }

  const Triangulation& tri_;
  const int n_;
  std::vector<int32_t> weight_;
  std::vector<int> owner_;  // [4n] face of the tetrahedron -> its number
  std::vector<Rep> reps_;
  std::vector<Point> points_;
  std::vector<std::vector<int>> lines_, numbers_;
  std::vector<std::pair<int, int>> partner_;
  Triangulation result_;
};

}  // namespace

Triangulation attach(const Triangulation& tri, const std::vector<int32_t>& weights) {
  return Spine(tri, weights).result();
}

}  // namespace statepool::topology
