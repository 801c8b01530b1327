// Stack: segments of item addresses, linked from the top one down. The segment that was emptied last stays, so that a
// stack that moves up and down over a boundary does not allocate each time.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../item.h"

namespace statepool::store {

template <class Mem>
class Stack {
 public:
  Stack(Mem& mem, Addr root) : mem_(mem), root_(root) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    return root;
  }

  void destroy() {
    each(0, ~size_t{0}, [&](Addr item) { release_item(mem_, item); });
    for (const Addr field : {kTop, kSpare})
      for (Addr segment = mem_.load(root_ + field), below; segment != 0; segment = below) {
        below = field == kTop ? mem_.load(segment + kBelow) : 0;
        mem_.release(segment, kSegmentSize);
      }
    mem_.release(root_, kRootSize);
  }

  void push(Bytes value) {
    const uint64_t size = mem_.load(root_ + Root::size), slot = size % kSlots;
    if (slot == 0) add_segment();
    const Addr top = mem_.load(root_ + kTop);
    mem_.store(top + kFirst + 8 * slot, make_item(mem_, {}, value));
    note_change(mem_, root_, 1, false);
  }

  bool pop(std::string& value) {
    const uint64_t size = mem_.load(root_ + Root::size);
    if (size == 0) return false;
    const Addr top = mem_.load(root_ + kTop), item = mem_.load(top + kFirst + 8 * ((size - 1) % kSlots));
    uint64_t lsn = 0;
    mem_.touch(item, kItemGuess);
    read_value(mem_, item, value, lsn);
    release_item(mem_, item);
    if ((size - 1) % kSlots == 0) drop_segment();
    note_change(mem_, root_, -1, true);
    return true;
  }

  // The value `index` places below the top.
  bool at(uint64_t index, std::string& value, uint64_t& lsn) const {
    bool found = false;
    each(index, 1, [&](Addr item) {
      read_value(mem_, item, value, lsn);
      found = true;
    });
    return found;
  }

  // Places below the top and values, from `start` on.
  void peek(uint64_t start, size_t limit, std::vector<std::pair<uint64_t, std::string>>& out) const {
    uint64_t lsn = 0;
    each(start, limit, [&](Addr item) {
      out.emplace_back(start + out.size(), std::string());
      read_value(mem_, item, out.back().second, lsn);
    });
  }

  uint64_t size() const { return mem_.load(root_ + Root::size); }

 private:
  static constexpr uint64_t kSlots = 31;  // a segment is 256 bytes
  static constexpr Addr kBelow = 0, kFirst = 8, kSegmentSize = kFirst + 8 * kSlots;
  static constexpr Addr kTop = Root::own, kSpare = Root::own + 8, kRootSize = Root::own + 16;

  template <class Visit>
  void each(uint64_t start, size_t limit, Visit&& visit) const {
    const uint64_t size = mem_.load(root_ + Root::size);
    if (start >= size || limit == 0) return;
    Addr segment = mem_.load(root_ + kTop);
    uint64_t place = size - 1 - start;
    for (uint64_t up = (size - 1) / kSlots - place / kSlots; up > 0; --up) segment = mem_.load(segment + kBelow);
    mem_.touch(segment, kSegmentSize);
    for (uint64_t left = std::min<uint64_t>(limit, place + 1);; --place) {
      const Addr item = mem_.load(segment + kFirst + 8 * (place % kSlots));
      mem_.touch(item, kItemGuess);
      visit(item);
      if (--left == 0) return;
      if (place % kSlots != 0) continue;
      segment = mem_.load(segment + kBelow);
      mem_.touch(segment, kSegmentSize);
    }
  }

  void add_segment() {
    Addr segment = mem_.load(root_ + kSpare);
    if (segment != 0) {
      mem_.store(root_ + kSpare, 0);
      mem_.store(segment + kBelow, mem_.load(root_ + kTop));
    } else {
      segment = mem_.allocate(kSegmentSize);
      mem_.fill(segment + kBelow, mem_.load(root_ + kTop));
    }
    mem_.store(root_ + kTop, segment);
  }

  void drop_segment() {
    const Addr segment = mem_.load(root_ + kTop);
    mem_.store(root_ + kTop, mem_.load(segment + kBelow));
    if (const Addr spare = mem_.load(root_ + kSpare); spare != 0) mem_.release(spare, kSegmentSize);
    mem_.store(root_ + kSpare, segment);
  }

  Mem& mem_;
  Addr root_;
};

}  // namespace statepool::store
