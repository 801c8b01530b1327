// The candidate list of a best-first search: sorted, bounded, each entry with its expanded bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace statepool::graph {

// A candidate in eight bytes that sort by (distance, id): the float in an order-keeping code, the id, the expanded bit.
using Entry = uint64_t;

inline Entry entry_of(float distance, uint32_t id) {
  uint32_t bits;
  std::memcpy(&bits, &distance, 4);
  bits ^= static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u;
  return static_cast<Entry>(bits) << 32 | static_cast<Entry>(id) << 1;
}
inline float distance_of(Entry entry) {
  uint32_t bits = static_cast<uint32_t>(entry >> 32);
  bits ^= (bits >> 31) - 1u | 0x80000000u;
  float distance;
  std::memcpy(&distance, &bits, 4);
  return distance;
}
inline uint32_t id_of(Entry entry) { return static_cast<uint32_t>(entry) >> 1; }
constexpr Entry kNoBound = 0xff800000ffffffffu;  // the entry of an infinite distance
inline bool expanded(Entry entry) { return entry & 1u; }

class Pool {
 public:
  void reset(int capacity) {
    capacity_ = capacity;
    if (static_cast<int>(entries_.size()) < capacity + 1) entries_.resize(static_cast<size_t>(capacity) + 1);
    size_ = 0;
    cursor_ = 0;
  }

  int size() const { return size_; }
  bool full() const { return size_ == capacity_; }
  Entry at(int i) const { return entries_[static_cast<size_t>(i)]; }
  const Entry* begin() const { return entries_.data(); }
  // What a new candidate must be below.
  Entry bound() const { return full() ? entries_[static_cast<size_t>(size_) - 1] : kNoBound; }

  // Insert in order, dropping the last entry when full. False if it is no better than the bound or is there already.
  bool insert(Entry entry) {
    if (entry >= bound()) return false;
    Entry* data = entries_.data();
    int low = 0, count = size_;
    while (count > 0) {
      const int half = count >> 1;
      const bool right = data[low + half] < entry;
      low = right ? low + half + 1 : low;
      count = right ? count - half - 1 : half;
    }
    if (low < size_ && data[low] >> 1 == entry >> 1) return false;
    const int moved = (full() ? size_ - 1 : size_) - low;
    std::memmove(data + low + 1, data + low, sizeof(Entry) * static_cast<size_t>(moved));
    data[low] = entry;
    if (!full()) ++size_;
    if (low < cursor_) cursor_ = low;
    return true;
  }

  // Insert, or open the same entry again if it is there and `entry` was not expanded.
  void reopen(Entry entry) {
    if (insert(entry) || expanded(entry)) return;
    Entry* end = entries_.data() + size_;
    Entry* found = std::lower_bound(entries_.data(), end, entry);
    if (found == end || *found >> 1 != entry >> 1) return;
    *found = entry;
    cursor_ = std::min(cursor_, static_cast<int>(found - entries_.data()));
  }

  // Index of the nearest entry that is not expanded, size() if there is none.
  int next() {
    while (cursor_ < size_ && expanded(entries_[static_cast<size_t>(cursor_)])) ++cursor_;
    return cursor_;
  }
  void mark(int i) { entries_[static_cast<size_t>(i)] |= 1u; }

 private:
  std::vector<Entry> entries_;
  int size_ = 0, capacity_ = 0, cursor_ = 0;
};

}  // namespace statepool::graph
