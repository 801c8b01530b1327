// A page of a B+tree: entries in key order, found by comparing eight bytes of each key inside the page.
//
//   0  u16 count, u16 level (0 = leaf), u32 skip
//   8  next, prev   addresses of the neighbouring leaves (trees with versions link none)
//  24  version      that the page was written in (trees with versions)
//  32  prefixes, then objects, then in inner pages children: one array of words each
//
// An object is an item in a leaf, a separator (an item without value) in an inner page: child i holds the keys from
// separator i up to separator i + 1; the first child has none. All keys that may ever come to a page lie between two
// separators and so share the `skip` bytes that those share: a prefix is the eight key bytes after them. Only keys
// with equal prefixes are compared as a whole.
#pragma once

#include <algorithm>
#include <vector>

#include "../item.h"
#include "range.h"

namespace statepool::store {

constexpr size_t kPage = 4096, kPageHeader = 32, kMaxLevel = 12;
constexpr size_t kLeafEntries = (kPage - kPageHeader) / 16, kInnerEntries = (kPage - kPageHeader) / 24;

struct Slot {
  uint64_t prefix;
  Addr object, child;
};

inline size_t common_prefix(Bytes a, Bytes b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + std::min(a.size(), b.size()), b.begin()).first -
                             a.begin());
}

// The skip of a page between two separators; without one of them nothing is known of its keys.
template <class Mem>
size_t shared_bytes(Mem& mem, Addr low, Addr high) {
  return low == 0 || high == 0 ? 0 : common_prefix(key_of(mem, low), key_of(mem, high));
}

template <class Mem>
class Page {
 public:
  Page(Mem& mem, Addr at) : mem_(&mem), at_(at) {
    mem.touch(at, kPage);
    load();
  }

  Addr at() const { return at_; }
  bool leaf() const { return level_ == 0; }
  size_t level() const { return level_; }
  size_t count() const { return count_; }
  size_t skip() const { return skip_; }
  bool full() const { return count_ == capacity(level_); }
  static size_t capacity(size_t level) { return level == 0 ? kLeafEntries : kInnerEntries; }

  uint64_t prefix(size_t i) const { return mem_->load(prefixes() + 8 * i); }
  Addr object(size_t i) const { return mem_->load(objects() + 8 * i); }
  Addr child(size_t i) const { return mem_->load(children() + 8 * i); }
  Addr next() const { return mem_->load(at_ + kNext); }
  Addr prev() const { return mem_->load(at_ + kPrev); }
  uint64_t version() const { return mem_->load(at_ + kVersion); }

  struct Place {
    size_t index;  // of the first entry that is not below the key
    bool found;    // it has that key
  };

  Place find(Bytes key) const { return find(key, 0); }

  // The child whose range holds the key.
  size_t child_for(Bytes key) const {
    const Place place = find(key, 1);
    return place.found ? place.index : place.index - 1;
  }

  Page down(size_t i) const {
    if (i >= count_) throw Torn{};
    const Page below(*mem_, child(i));
    if (below.level_ + 1 != level_) throw Torn{};  // and so no walk down is endless
    return below;
  }

  // The first entry of a leaf that lies in the range and the one after the last; crossed if there is none.
  std::pair<size_t, size_t> slice(const Range& range) const {
    size_t begin = 0, end = count_;
    if (range.has_low) begin = bound(range.low, !range.include_low);
    if (range.has_high) end = bound(range.high, range.include_high);
    return {begin, end};
  }

  // Visits at most `left` items of a leaf that lie in the range, in its direction. False if no further leaf can hold one.
  template <class Visit>
  bool each(const Range& range, size_t& left, Visit&& visit) const {
    const auto [begin, end] = slice(range);
    const size_t n = std::min(left, end - std::min(begin, end));
    const auto item = [&, begin = begin, end = end](size_t k) { return object(range.reverse ? end - 1 - k : begin + k); };
    for (size_t k = 0; k < std::min(n, kAhead); ++k) mem_->touch(item(k), kItemGuess);
    for (size_t k = 0; k < n; ++k) {
      if (k + kAhead < n) mem_->touch(item(k + kAhead), kItemGuess);
      visit(item(k));
    }
    left -= n;
    return left > 0 && (range.reverse ? begin == 0 : end == count_);
  }

  std::vector<Slot> slots() const {
    uint64_t words[kLeafEntries];
    std::vector<Slot> out(count_);
    mem_->read(prefixes(), words, 8 * count_);
    for (size_t i = 0; i < count_; ++i) out[i].prefix = words[i];
    mem_->read(objects(), words, 8 * count_);
    for (size_t i = 0; i < count_; ++i) out[i].object = words[i];
    if (!leaf()) mem_->read(children(), words, 8 * count_);
    for (size_t i = 0; i < count_; ++i) out[i].child = leaf() ? 0 : words[i];
    return out;
  }

  // ---- writing: only the words that move are logged ----------------------------------------------------------------
  void insert(size_t i, const Slot& slot) {
    shift_in(prefixes(), i, slot.prefix);
    shift_in(objects(), i, slot.object);
    if (!leaf()) shift_in(children(), i, slot.child);
    set_head(count_ + 1, skip_);
  }

  void remove(size_t i) {
    shift_out(prefixes(), i);
    shift_out(objects(), i);
    if (!leaf()) shift_out(children(), i);
    set_head(count_ - 1, skip_);
  }

  void truncate(size_t count) { set_head(count, skip_); }
  void set_object(size_t i, Addr object) { mem_->store(objects() + 8 * i, object); }
  void set_child(size_t i, Addr child) { mem_->store(children() + 8 * i, child); }
  void set_next(Addr next) { mem_->store(at_ + kNext, next); }
  void set_prev(Addr prev) { mem_->store(at_ + kPrev, prev); }

  // Computes the prefixes anew for another skip.
  void recode(size_t skip) {
    if (skip == skip_) return;
    uint64_t words[kLeafEntries];
    for (size_t i = 0; i < count_; ++i) words[i] = object(i) == 0 ? 0 : prefix_of(key_of(*mem_, object(i)), skip);
    mem_->write(prefixes(), words, 8 * count_);
    set_head(count_, skip);
  }

  static void recode(Mem& mem, std::vector<Slot>& slots, size_t skip) {
    for (Slot& slot : slots) slot.prefix = slot.object == 0 ? 0 : prefix_of(key_of(mem, slot.object), skip);
  }

  // A whole page, in memory that this transaction allocated.
  static void write(Mem& mem, Addr at, size_t level, size_t skip, const Slot* slots, size_t count) {
    uint64_t words[kPage / 8];
    words[0] = head_word(count, level, skip);
    words[1] = words[2] = 0;
    words[3] = mem.lsn();
    const size_t room = capacity(level);
    uint64_t* to = words + kPageHeader / 8;
    for (size_t i = 0; i < count; ++i) to[i] = slots[i].prefix, to[room + i] = slots[i].object;
    if (level > 0)
      for (size_t i = 0; i < count; ++i) to[2 * room + i] = slots[i].child;
    mem.fill(at, words, 8 * (kPageHeader / 8 + count));
    mem.fill(at + kPageHeader + 8 * room, to + room, 8 * count);
    if (level > 0) mem.fill(at + kPageHeader + 16 * room, to + 2 * room, 8 * count);
  }

 private:
  static constexpr Addr kNext = 8, kPrev = 16, kVersion = 24;
  static constexpr size_t kSample = 32;
  static constexpr size_t kAhead = 8;  // items on their way from memory while one is copied

  Addr prefixes() const { return at_ + kPageHeader; }
  Addr objects() const { return prefixes() + 8 * capacity(level_); }
  Addr children() const { return objects() + 8 * kInnerEntries; }

  static uint64_t head_word(size_t count, size_t level, size_t skip) { return count | level << 16 | skip << 32; }

  void load() {
    const uint64_t head = mem_->load(at_);
    count_ = head & 0xffff;
    level_ = head >> 16 & 0xffff;
    skip_ = head >> 32;
    if (level_ > kMaxLevel || count_ > capacity(level_) || skip_ > kMaxKey) throw Torn{};
  }

  void set_head(size_t count, size_t skip) {
    count_ = count;
    skip_ = skip;
    mem_->store(at_, head_word(count, level_, skip));
  }

  // Number of prefixes from `from` on that are below `wanted`, plus `from`. Every 32nd prefix narrows it down first:
  // those lie in lines that Heap::touch() asked for together, where halving would wait for one line after the other.
  size_t lower_bound(uint64_t wanted, size_t from) const {
    const Addr base = prefixes();
    size_t at = from;
    while (at + kSample <= count_ && mem_->load(base + 8 * (at + kSample - 1)) < wanted) at += kSample;
    size_t left = std::min(kSample, count_ - std::min(at, count_));
    while (left > 0) {
      const size_t half = (left + 1) / 2;
      at += mem_->load(base + 8 * (at + half - 1)) < wanted ? half : 0;
      left -= half;
    }
    return at;
  }

  Place find(Bytes key, size_t from) const {
    const uint64_t wanted = prefix_of(key, skip_);
    size_t at = lower_bound(wanted, from);
    if (at >= count_ || prefix(at) != wanted) return {at, false};
    size_t end = at + 1;
    if (end < count_ && prefix(end) == wanted) end = wanted == ~uint64_t{0} ? count_ : lower_bound(wanted + 1, at);
    while (at < end) {
      const size_t middle = at + (end - at) / 2;
      const Addr candidate = object(middle);
      mem_->touch(candidate, leaf() ? kItemGuess : kSeparatorGuess);
      const int sign = compare_key(*mem_, candidate, key);
      if (sign == 0) return {middle, true};
      if (sign < 0)
        at = middle + 1;
      else
        end = middle;
    }
    return {at, false};
  }

  // Number of entries of a leaf below the key, or not above it. The key may lie outside of what the leaf may hold,
  // where prefixes say nothing; between its first and its last key they do.
  size_t bound(Bytes key, bool with_equal) const {
    if (count_ == 0 || sign_of(0, key) > 0) return 0;
    if (sign_of(count_ - 1, key) < 0) return count_;
    const Place place = find(key, 0);
    return place.index + (place.found && with_equal ? 1 : 0);
  }

  int sign_of(size_t i, Bytes key) const {
    mem_->touch(object(i), kItemGuess);
    return compare_key(*mem_, object(i), key);
  }

  void shift_in(Addr array, size_t i, uint64_t word) {
    uint64_t words[kLeafEntries];
    words[0] = word;
    mem_->read(array + 8 * i, words + 1, 8 * (count_ - i));
    mem_->write(array + 8 * i, words, 8 * (count_ - i + 1));
  }

  void shift_out(Addr array, size_t i) {
    if (i + 1 == count_) return;
    uint64_t words[kLeafEntries];
    mem_->read(array + 8 * (i + 1), words, 8 * (count_ - i - 1));
    mem_->write(array + 8 * i, words, 8 * (count_ - i - 1));
  }

  static constexpr size_t kSeparatorGuess = 48;

  Mem* mem_;
  Addr at_;
  size_t count_ = 0, level_ = 0, skip_ = 0;
};

// The shortest key above the one of item a and not above the one of item b.
template <class Mem>
Addr make_separator(Mem& mem, Addr a, Addr b) {
  const std::string below = key_of(mem, a), above = key_of(mem, b);
  return make_item(mem, Bytes(above).substr(0, common_prefix(below, above) + 1), {});
}

// Makes sure that the leaves of a walk come in key order: links that a reader meets torn may lead in a circle.
template <class Mem>
class LeafOrder {
 public:
  explicit LeafOrder(const Range& range) : reverse_(range.reverse) {}

  void enter(Mem& mem, const Page<Mem>& leaf) {
    if (!leaf.leaf() || leaf.count() == 0) throw Torn{};
    const Addr near = leaf.object(reverse_ ? leaf.count() - 1 : 0), far = leaf.object(reverse_ ? 0 : leaf.count() - 1);
    if (entered_ && compare_key(mem, near, edge_) * (reverse_ ? -1 : 1) <= 0) throw Torn{};
    edge_ = key_of(mem, far);
    entered_ = true;
  }

 private:
  std::string edge_;
  bool reverse_, entered_ = false;
};

}  // namespace statepool::store
