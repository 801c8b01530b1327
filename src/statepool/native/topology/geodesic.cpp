#include <algorithm>
#include <cmath>
#include <complex>

#include "double2.h"
#include "surface.h"

namespace statepool::topology {

namespace {

constexpr double ambiguous = 1e-12;
constexpr int longest = 1 << 16;

struct Matrix {
  Double2 a, b, c, d;
};

Matrix operator*(const Matrix& m, const Matrix& n) {
  return {m.a * n.a + m.b * n.c, m.a * n.b + m.b * n.d, m.c * n.a + m.d * n.c, m.c * n.b + m.d * n.d};
}

// A point of the circle at infinity, projectively.
struct Ideal {
  Double2 x, y;
  void scale() {
    const double by = 1.0 / std::max(std::fabs(x.hi), std::fabs(y.hi));
    x = x * Double2(by), y = y * Double2(by);
  }
};

// Coordinates in the frame that follows after `m`.
Ideal after(const Matrix& m, const Ideal& z) {
  Ideal moved{m.d * z.x - m.b * z.y, m.a * z.y - m.c * z.x};
  moved.scale();
  return moved;
}
Ideal turned(const Ideal& z) { return {-z.y, z.x}; }  // by a half turn: -1/z

// In a frame on the middle of a side, looking outwards: where the geodesic crosses the line of the side.
bool leaves(const Ideal& from, const Ideal& to, Double2& place) {
  const double ahead = (absolute(to.x) - absolute(to.y)).hi, behind = (absolute(from.x) - absolute(from.y)).hi;
  if (ahead <= 0.0 || behind >= 0.0) return false;
  place = (from.y * to.y + from.x * to.x) / (from.x * to.y + to.x * from.y);
  return true;
}

class Walker {
 public:
  Walker(const Surface& surface, const Metric& metric) : surface_(surface), metric_(metric) {}

  Geodesic walk(const Path& path) {
    Geodesic found;
    if (path.entry.empty()) return found;
    Matrix whole = step(path.entry[0], path.right[0]);
    for (size_t i = 1; i < path.entry.size(); ++i) whole = whole * step(path.entry[i], path.right[i]);
    const Double2 trace = whole.a + whole.d;
    if (!(std::fabs(trace.hi) > 2.0 + 1e-9) || !std::isfinite(trace.hi)) return found;
    if (!aim(whole, trace)) return found;
    side_ = path.entry[0];
    if (!locate()) return found;
    // leave the first triangle, then record until the crossing comes again
    int exit = -1;
    Double2 place;
    for (int turn = 0; turn < 3 && exit < 0; ++turn) {
      const Ideal from = facing(turn, from_), to = facing(turn, to_);
      const int candidate = turn == 2 ? side_ : sideways(turn);
      if (leaves(from, to, place) && std::fabs(place.hi) <= metric_.reach[candidate]) {
        exit = candidate;
        from_ = from, to_ = to;
      }
    }
    if (exit < 0) return found;
    side_ = surface_.across[exit];
    const int first = side_;
    const double first_place = place.hi;
    double here = first_place;
    Matrix closed{1.0, 0.0, 0.0, 1.0};
    do {
      bool moved = false;
      for (int turn = 0; turn < 2 && !moved; ++turn) {
        const Ideal from = facing(turn, from_), to = facing(turn, to_);
        const int out = sideways(turn);
        if (!leaves(from, to, place) || std::fabs(place.hi) > metric_.reach[out]) continue;
        if (metric_.reach[out] - std::fabs(place.hi) < ambiguous) return found;
        closed = closed * step(side_, turn);
        found.entry.push_back(side_);
        found.in.push_back(here);
        found.exit.push_back(out);
        found.out.push_back(-place.hi);
        from_ = from, to_ = to, side_ = surface_.across[out], here = place.hi;
        moved = true;
      }
      if (!moved || found.entry.size() > longest) return found;
    } while (side_ != first || std::fabs(here - first_place) > 1e-9);
    // it is the same free homotopy class only if the holonomy has the same trace
    const double again = std::fabs((closed.a + closed.d).hi), before = std::fabs(trace.hi);
    found.sure = std::fabs(again - before) <= 1e-6 * before && apart(found);
    return found;
  }

 private:
  Matrix step(int side, int right) const {
    const double* m = &metric_.matrix[(2 * side + right) * 8];
    return {{m[0], m[1]}, {m[2], m[3]}, {m[4], m[5]}, {m[6], m[7]}};
  }
  int sideways(int turn) const { return side_ / 3 * 3 + (side_ + (turn ? 1 : 2)) % 3; }
  Ideal facing(int turn, const Ideal& z) const { return turn == 2 ? turned(z) : after(step(side_, turn), z); }

  // The ends of the axis: eigenvectors of the holonomy, without cancellation.
  bool aim(const Matrix& m, Double2 trace) {
    const Double2 size = root(trace * trace - Double2(4.0));
    const Double2 large = (trace.hi > 0.0 ? trace + size : trace - size) * Double2(0.5);
    const Double2 small = Double2(1.0) / large;
    if (std::fabs(m.a.hi) >= std::fabs(m.d.hi)) {
      to_ = {large - m.d, m.c};
      from_ = {m.b, small - m.a};
    } else {
      to_ = {m.b, large - m.a};
      from_ = {small - m.d, m.c};
    }
    if ((to_.x.hi == 0.0 && to_.y.hi == 0.0) || (from_.x.hi == 0.0 && from_.y.hi == 0.0)) return false;
    to_.scale(), from_.scale();
    return true;
  }

  // Walk to a triangle that holds the point of the axis nearest to the start.
  bool locate() {
    const double rx = from_.x.hi, ry = from_.y.hi, ax = to_.x.hi, ay = to_.y.hi;
    // |w| of the middle, with r = rx/ry and a = ax/ay cleared of denominators
    const double t2 = (rx * rx + ry * ry) / (ax * ax + ay * ay);
    const double den = ry * ry + ay * ay * t2;
    if (!(den > 0.0)) return false;
    std::complex<double> p((rx * ry + ax * ay * t2) / den, std::sqrt(t2) * std::fabs(ax * ry - rx * ay) / den);
    for (int guard = 0; guard < longest; ++guard) {
      int go = -1;
      for (int i = 0; i < 3 && go < 0; ++i) {
        const int turn = (guard + i) % 3;
        if (std::abs(facing(turn, p)) > 1.0) go = turn;
      }
      if (go < 0) return true;
      p = facing(go, p);
      const Ideal from = facing(go, from_), to = facing(go, to_);
      const int out = go == 2 ? side_ : sideways(go);
      from_ = from, to_ = to, side_ = surface_.across[out];
    }
    return false;
  }
  std::complex<double> facing(int turn, std::complex<double> p) const {
    if (turn == 2) return -1.0 / p;
    const Matrix m = step(side_, turn);
    return (m.d.hi * p - m.b.hi) / (m.a.hi - m.c.hi * p);
  }

  // Strands on one edge keep a distance, so that their order is sure.
  bool apart(const Geodesic& found) const {
    std::vector<std::pair<int, double>> places;
    for (size_t i = 0; i < found.entry.size(); ++i) {
      const int other = surface_.across[found.entry[i]];
      places.emplace_back(std::min(found.entry[i], other), other < found.entry[i] ? -found.in[i] : found.in[i]);
    }
    std::sort(places.begin(), places.end());
    for (size_t i = 1; i < places.size(); ++i)
      if (places[i].first == places[i - 1].first && places[i].second - places[i - 1].second < 1e-8) return false;
    return true;
  }

  const Surface& surface_;
  const Metric& metric_;
  int side_ = 0;  // the frame is on the middle of this side, looking into its triangle
  Ideal from_, to_;
};

using End = std::pair<int, double>;

bool between(const End& low, const End& high, const End& x) { return low < x && x < high; }
bool close(const End& a, const End& b) { return a.first == b.first && std::fabs(a.second - b.second) < ambiguous; }

}  // namespace

Geodesic geodesic(const Surface& surface, const Metric& metric, const Path& path) {
  return Walker(surface, metric).walk(path);
}

int crossings(const Geodesic& one, const Geodesic& two, int triangles) {
  std::vector<std::vector<size_t>> chords(triangles);
  for (size_t j = 0; j < two.entry.size(); ++j) chords[two.entry[j] / 3].push_back(j);
  int count = 0;
  for (size_t i = 0; i < one.entry.size(); ++i) {
    End low{one.entry[i], one.in[i]}, high{one.exit[i], one.out[i]};
    if (high < low) std::swap(low, high);
    for (const size_t j : chords[one.entry[i] / 3]) {
      const End p{two.entry[j], two.in[j]}, q{two.exit[j], two.out[j]};
      if (close(p, low) || close(p, high) || close(q, low) || close(q, high)) return -1;
      count += between(low, high, p) != between(low, high, q);
    }
  }
  return count;
}

}  // namespace statepool::topology
