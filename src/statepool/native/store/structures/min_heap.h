// A binary heap of {rank, number} pairs in one array: the smallest rank first, the smaller number first among equals.
// Pairs that come in the order of their ranks are only appended. Large changes make a new array, which costs the undo
// journal nothing.
#pragma once

#include <algorithm>
#include <vector>

#include "../heap.h"

namespace statepool::store {

template <class Mem>
class MinHeap {
 public:
  struct Pair {
    uint64_t rank, number;
    bool operator<(const Pair& o) const { return rank != o.rank ? rank < o.rank : number < o.number; }
    bool operator==(const Pair& o) const { return rank == o.rank && number == o.number; }
  };
  static constexpr Addr kWords = 24;  // that it takes in the root of its owner, zero at first

  MinHeap(Mem& mem, Addr at) : mem_(mem), at_(at) {}

  uint64_t size() const { return mem_.load(at_ + kSize); }
  Pair top() const { return pair(0); }

  void push(Pair p) {
    uint64_t i = size();
    if (i == mem_.load(at_ + kRoom)) rebuild(all([](const Pair&) { return true; }));
    mem_.store(at_ + kSize, i + 1);
    for (; i > 0; i = (i - 1) / 2) {
      const Pair above = pair((i - 1) / 2);
      if (!(p < above)) break;
      put(i, above);
    }
    put(i, p);
  }

  Pair pop() {
    const Pair first = top();
    const uint64_t left = size() - 1;
    mem_.store(at_ + kSize, left);
    if (left > 0) sink(pair(left), left);
    return first;
  }

  // Takes out the pairs of a rank up to `limit`, at most `most` of them.
  std::vector<Pair> pop_up_to(uint64_t limit, size_t most) {
    std::vector<Pair> out;
    while (size() > 0 && out.size() < most && top().rank <= limit) {
      if (out.size() == kFew) {
        std::vector<Pair> rest = all([](const Pair&) { return true; });
        std::sort(rest.begin(), rest.end());
        size_t n = 0;
        while (n < rest.size() && out.size() < most && rest[n].rank <= limit) out.push_back(rest[n++]);
        rebuild({rest.begin() + static_cast<ptrdiff_t>(n), rest.end()});
        break;
      }
      out.push_back(pop());
    }
    return out;
  }

  void push_all(const std::vector<Pair>& pairs) {
    if (pairs.size() <= kFew) {
      for (const Pair& p : pairs) push(p);
      return;
    }
    std::vector<Pair> whole = all([](const Pair&) { return true; });
    whole.insert(whole.end(), pairs.begin(), pairs.end());
    rebuild(std::move(whole));
  }

  // Whether `wanted` says yes to a pair of a rank up to `limit`. Looks only at those.
  template <class Wanted>
  bool any(uint64_t limit, Wanted&& wanted) const {
    const uint64_t n = size();
    std::vector<uint64_t> open;
    if (n > 0) open.push_back(0);
    while (!open.empty()) {
      const uint64_t i = open.back();
      open.pop_back();
      const Pair p = pair(i);
      if (p.rank > limit) continue;
      if (wanted(p)) return true;
      for (const uint64_t below : {2 * i + 1, 2 * i + 2})
        if (below < n) open.push_back(below);
    }
    return false;
  }

  // All pairs that `wanted` says yes to, in no order.
  template <class Wanted>
  std::vector<Pair> all(Wanted&& wanted) const {
    std::vector<Pair> out;
    for (uint64_t i = 0, n = size(); i < n; ++i)
      if (const Pair p = pair(i); wanted(p)) out.push_back(p);
    return out;
  }

  // Drops the pairs that `wanted` says no to, and all but one of equal ones.
  template <class Wanted>
  void keep(Wanted&& wanted) {
    std::vector<Pair> kept = all(wanted);
    std::sort(kept.begin(), kept.end());
    kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
    rebuild(std::move(kept));
  }

  void destroy() {
    if (const uint64_t room = mem_.load(at_ + kRoom); room > 0) mem_.release(mem_.load(at_), room * sizeof(Pair));
  }

 private:
  static constexpr Addr kSize = 8, kRoom = 16;
  static constexpr size_t kFew = 32;  // above it one new array is cheaper than single steps

  Pair pair(uint64_t i) const {
    const Addr at = mem_.load(at_) + i * sizeof(Pair);
    mem_.touch(at, sizeof(Pair));
    return {mem_.load(at), mem_.load(at + 8)};
  }
  void put(uint64_t i, const Pair& p) { mem_.write(mem_.load(at_) + i * sizeof(Pair), &p, sizeof(p)); }

  void sink(const Pair& p, uint64_t n) {
    uint64_t i = 0;
    for (uint64_t below; (below = 2 * i + 1) < n; i = below) {
      Pair least = pair(below);
      if (below + 1 < n)
        if (const Pair other = pair(below + 1); other < least) least = other, ++below;
      if (!(least < p)) break;
      put(i, least);
    }
    put(i, p);
  }

  // A sorted array is a heap.
  void rebuild(std::vector<Pair> pairs) {
    std::sort(pairs.begin(), pairs.end());
    const uint64_t room = std::max<uint64_t>(8, 2 * pairs.size());
    const Addr array = mem_.allocate(room * sizeof(Pair));
    mem_.fill(array, pairs.data(), pairs.size() * sizeof(Pair));
    destroy();
    mem_.store(at_, array);
    mem_.store(at_ + kSize, pairs.size());
    mem_.store(at_ + kRoom, room);
  }

  Mem& mem_;
  Addr at_;
};

}  // namespace statepool::store
