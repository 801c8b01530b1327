// Stack: segments of item addresses, numbered from the bottom. One segment more than needed may stay, so that a stack
// that moves up and down over a boundary does not allocate each time.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../item.h"
#include "segments.h"

namespace statepool::store {

template <class Mem>
class Stack {
 public:
  Stack(Mem& mem, Addr root) : mem_(mem), root_(root), segments_(mem, root + kSegments, kSlots * 8) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    return root;
  }

  void destroy() {
    for (uint64_t place = 0, n = size(); place < n; ++place) release_item(mem_, mem_.load(slot(place)));
    segments_.destroy(0, mem_.load(root_ + kCount));
    mem_.release(root_, kRootSize);
  }

  void push(Bytes value) {
    const uint64_t n = size();
    if (n % kSlots == 0) start_segment(n / kSlots);
    mem_.store(mem_.load(root_ + kTop) + 8 * (n % kSlots), make_item(mem_, {}, value));
    note_change(mem_, root_, 1, false);
  }

  bool pop(std::string& value) {
    const uint64_t n = size();
    if (n == 0) return false;
    const Addr item = item_at_top();
    uint64_t lsn = 0;
    read_value(mem_, item, value, lsn);
    release_item(mem_, item);
    if ((n - 1) % kSlots == 0) end_segment((n - 1) / kSlots);
    note_change(mem_, root_, -1, true);
    return true;
  }

  bool peek(std::string& value, uint64_t& lsn) const { return at(0, value, lsn); }

  // The value `index` places below the top.
  bool at(uint64_t index, std::string& value, uint64_t& lsn) const {
    const uint64_t n = size();
    if (index >= n) return false;
    const Addr item = index <= (n - 1) % kSlots ? item_at_top(index) : mem_.load(slot(n - 1 - index));
    mem_.touch(item, kItemGuess);
    read_value(mem_, item, value, lsn);
    return true;
  }

  // Values from `start` places below the top on, downwards.
  void scan(uint64_t start, size_t limit, std::vector<std::pair<uint64_t, std::string>>& out) const {
    std::string value;
    uint64_t lsn = 0;
    for (uint64_t i = start; out.size() < limit && at(i, value, lsn); ++i) out.emplace_back(i, value);
  }

  uint64_t size() const {
    mem_.touch(root_, kRootSize);
    return mem_.load(root_ + Root::size);
  }

 private:
  static constexpr uint64_t kSlots = 128;
  // kTop: address of the segment that holds the top. kCount: of the segments there are.
  static constexpr Addr kTop = Root::own, kCount = kTop + 8, kSegments = kCount + 8,
                        kRootSize = kSegments + Segments<Mem>::kWords;

  Addr slot(uint64_t place) const {
    if (place / kSlots >= segments_.capacity()) throw Torn{};
    const Addr at = segments_[place / kSlots] + 8 * (place % kSlots);
    mem_.touch(at, 8);
    return at;
  }

  // By the address in the root: one remote read less than through the ring. Of those that lie in the top's segment.
  Addr item_at_top(uint64_t index = 0) const {
    const Addr at = mem_.load(root_ + kTop) + 8 * ((mem_.load(root_ + Root::size) - 1) % kSlots - index);
    mem_.touch(at, 8);
    const Addr item = mem_.load(at);
    mem_.touch(item, kItemGuess);
    return item;
  }

  void start_segment(uint64_t number) {
    const uint64_t count = mem_.load(root_ + kCount);
    if (number < count) return mem_.store(root_ + kTop, segments_[number]);
    mem_.store(root_ + kTop, segments_.add(number, 0));
    mem_.store(root_ + kCount, count + 1);
  }

  void end_segment(uint64_t number) {
    if (mem_.load(root_ + kCount) > number + 1) {
      segments_.remove(number + 1);
      mem_.store(root_ + kCount, number + 1);
    }
    if (number > 0) mem_.store(root_ + kTop, segments_[number - 1]);
  }

  Mem& mem_;
  Addr root_;
  Segments<Mem> segments_;
};

}  // namespace statepool::store
