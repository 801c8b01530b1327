#include "surface.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace statepool::topology {

Path trace(const Surface& surface, const std::vector<int32_t>& weights) {
  Path path;
  int side = 0;
  while (side < static_cast<int>(surface.across.size()) && weights[surface.edge[side]] == 0) ++side;
  if (side == static_cast<int>(surface.across.size())) return path;
  const int start = side;
  int place = 0;
  do {
    const int t = side / 3, s = side % 3;
    const int next = 3 * t + (s + 1) % 3, prior = 3 * t + (s + 2) % 3;
    const int w = weights[surface.edge[side]], wn = weights[surface.edge[next]], wp = weights[surface.edge[prior]];
    const int left = (w + wp - wn) / 2;  // strands around corner s + 1, at the beginning of the side
    path.entry.push_back(side);
    path.right.push_back(place >= left);
    if (place < left) {
      side = prior;
      place = wp - 1 - place;
    } else {
      side = next;
      place = w - 1 - place;
    }
    place = weights[surface.edge[side]] - 1 - place;
    side = surface.across[side];
  } while (side != start || place != 0);
  return path;
}

namespace {

class Enumeration {
 public:
  Enumeration(const Surface& surface, int step, int total, size_t limit, int64_t budget, std::vector<int32_t>& found)
      : surface_(surface), step_(step), limit_(limit), budget_(budget), found_(found), weights_(surface.edges, 0) {
    // edges in an order that completes triangles early
    std::vector<char> known(surface.edges, 0);
    for (int done = 0; done < surface.edges; ++done) {
      int best = -1, most = -1;
      for (int e = 0; e < surface.edges; ++e) {
        if (known[e]) continue;
        int score = 0;
        for (int side = 0; side < static_cast<int>(surface.edge.size()); ++side)
          if (surface.edge[side] == e)
            score += known[surface.edge[other(side, 1)]] + known[surface.edge[other(side, 2)]];
        if (score > most) most = score, best = e;
      }
      known[best] = 1;
      order_.push_back(best);
      closes_.emplace_back();
      for (int t = 0; t < surface.triangles(); ++t) {
        const int* e = &surface.edge[3 * t];
        if ((e[0] == best || e[1] == best || e[2] == best) && known[e[0]] && known[e[1]] && known[e[2]])
          closes_.back().push_back(t);
      }
    }
    complete_ = fill(0, total);
  }
  bool complete() const { return complete_; }

 private:
  int other(int side, int by) const { return side / 3 * 3 + (side + by) % 3; }

  bool fits(int t) const {
    const int* e = &surface_.edge[3 * t];
    const int a = weights_[e[0]], b = weights_[e[1]], c = weights_[e[2]];
    return a + b >= c && b + c >= a && a + c >= b && (step_ * (a + b + c)) % 2 == 0;
  }

  bool fill(size_t depth, int left) {
    if (--budget_ < 0 || found_.size() >= limit_ * surface_.edges) return false;
    if (depth == order_.size()) {
      if (left == 0) keep();
      return true;
    }
    const int e = order_[depth];
    const bool last = depth + 1 == order_.size();
    for (int h = last ? left : 0; h <= left; ++h) {
      weights_[e] = h;
      bool good = true;
      for (const int t : closes_[depth]) good = good && fits(t);
      if (good && !fill(depth + 1, left - h)) return false;
    }
    weights_[e] = 0;
    return true;
  }

  void keep() {
    std::vector<int32_t> weights(weights_);
    for (int32_t& w : weights) w *= step_;
    if (std::all_of(weights.begin(), weights.end(), [](int32_t w) { return w == 2; })) return;  // the link of the vertex
    const int64_t strands = std::accumulate(weights.begin(), weights.end(), int64_t{0});
    if (strands > 0 && static_cast<int64_t>(trace(surface_, weights).entry.size()) == strands)
      found_.insert(found_.end(), weights.begin(), weights.end());
  }

  const Surface& surface_;
  const int step_;
  const size_t limit_;
  int64_t budget_;
  std::vector<int32_t>& found_;
  std::vector<int32_t> weights_;
  std::vector<int> order_;
  std::vector<std::vector<int>> closes_;
  bool complete_ = false;
};

}  // namespace

bool curves(const Surface& surface, int step, int total, size_t limit, int64_t budget, std::vector<int32_t>& found) {
  return Enumeration(surface, step, total, limit, budget, found).complete();
}

}  // namespace statepool::topology
