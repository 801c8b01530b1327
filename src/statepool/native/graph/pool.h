// The candidate list of a best-first search: sorted, bounded, each entry with its expanded bit.
#pragma once

#include <algorithm>
#include <vector>

#include "entry.h"
#include "order.h"

namespace statepool::graph {

class Pool {
 public:
  void reset(int capacity) {
    capacity_ = capacity;
    size_ = 0;
    cursor_ = 0;
    const size_t room = static_cast<size_t>(capacity) / 8 * 8 + 8;  // whole blocks of eight
    if (memory_.size() < room + 8) memory_.resize(room + 8);
    entries_ = memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64 / sizeof(Entry);
    std::fill_n(entries_, room, kNoBound);
  }

  int size() const { return size_; }
  bool full() const { return size_ == capacity_; }
  Entry at(int i) const { return entries_[i]; }
  const Entry* begin() const { return entries_; }
  // What a new candidate must be below.
  Entry bound() const { return entries_[capacity_ - 1]; }

  // Insert in order what is below the bound; the same entry may be there twice then.
  void insert(const Entry* keys, int count) {
    Entry nearest = kNoBound;
    for (int i = 0; i < count; ++i) nearest = std::min(nearest, keys[i]);
    // Without an open entry the cursor is at the end, and what is inserted comes before it.
    if (nearest < (cursor_ < size_ ? entries_[cursor_] : bound())) cursor_ = 0;
    size_ = std::min(capacity_, size_ + order_kernels().insert(entries_, capacity_ - 1, keys, count));
  }
  void insert(Entry key) { insert(&key, 1); }
  // Unless the node is there at that distance. Slower.
  void insert_once(Entry key) {
    if (find(key) == size_) insert(key);
  }
  // Insert, or open the same entry again if it is there and `key` was not expanded.
  void reopen(Entry key) {
    const int found = find(key);
    if (found == size_) return insert(key);
    entries_[found] &= key;
    cursor_ = 0;
  }

  // Index of the nearest entry that is not expanded, size() if there is none.
  int next() { return cursor_ = order_kernels().first_even(entries_, cursor_, size_); }
  // Whether `count` open entries up to `bound` come from index `first` on.
  bool holds_open(int first, Entry bound, int count) const {
    for (int i = first; i < size_ && entries_[i] <= bound && count > 0; ++i) count -= !expanded(entries_[i]);
    return count <= 0;
  }
  // Move every second open entry from index `first` on, none above `bound` and at most `most`, to `out`.
  int split(int first, Entry bound, Entry* out, int most) {
    int moved = 0, kept = first;
    bool give = true;
    for (int i = first; i < size_; ++i) {
      const bool open = !expanded(entries_[i]) && entries_[i] <= bound && moved < most;
      if (open && give) out[moved++] = entries_[i];
      else entries_[kept++] = entries_[i];
      give ^= open;
    }
    std::fill_n(entries_ + kept, moved, kNoBound);
    size_ -= moved;
    return moved;
  }
  void mark(int i) { entries_[i] |= 1; }

 private:
  int find(Entry key) const {
    const Entry* end = entries_ + size_;
    const Entry* found = std::lower_bound(static_cast<const Entry*>(entries_), end, key & ~Entry{1});
    return found != end && *found >> 1 == key >> 1 ? static_cast<int>(found - entries_) : size_;
  }

  std::vector<Entry> memory_;
  Entry* entries_ = nullptr;
  int size_ = 0, capacity_ = 0, cursor_ = 0;
};

}  // namespace statepool::graph
