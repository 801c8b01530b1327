// A run of numbered segments of one size, found in one step through a ring of their addresses, so that segments come
// and go at both ends. Beside its address the ring keeps a count per segment, which is the owner's.
#pragma once

#include <algorithm>

#include "../heap.h"

namespace statepool::store {

template <class Mem>
class Segments {
 public:
  static constexpr Addr kWords = 16;  // that it takes in the root of its owner, zero at first

  Segments(Mem& mem, Addr at, size_t bytes) : mem_(mem), at_(at), bytes_(bytes) {}

  // Address of a segment; 0 if it was removed.
  Addr operator[](uint64_t number) const { return mem_.load(entry(number)) & ~kCount; }
  uint64_t capacity() const { return mem_.load(at_ + kEntries); }  // of the ring

  // The segment `number`, which follows those from `first` on.
  Addr add(uint64_t number, uint64_t first) {
    if (number - first >= capacity()) grow(first, number);
    const Addr segment = mem_.allocate(bytes_);
    mem_.store(entry(number), segment);
    return segment;
  }

  uint64_t count_up(uint64_t number) {
    const uint64_t word = mem_.load(entry(number)) + kOne;
    mem_.store(entry(number), word);
    return word / kOne;
  }

  void remove(uint64_t number) {
    mem_.release((*this)[number], bytes_);
    mem_.store(entry(number), 0);
  }

  // Frees all from `first` up to `end`, and the ring.
  void destroy(uint64_t first, uint64_t end) {
    for (uint64_t i = first; i < end; ++i)
      if (const Addr segment = (*this)[i]; segment != 0) mem_.release(segment, bytes_);
    if (const uint64_t entries = capacity(); entries != 0) mem_.release(mem_.load(at_), entries * 8);
  }

 private:
  static constexpr uint64_t kOne = uint64_t{1} << 48, kCount = ~(kOne - 1);  // an address has 48 bits at most
  static constexpr Addr kEntries = 8;

  Addr entry(uint64_t number) const {
    const uint64_t entries = capacity();  // a power of two
    if (entries == 0) throw Torn{};
    const Addr at = mem_.load(at_) + (number & (entries - 1)) * 8;
    mem_.touch(at, 8);
    return at;
  }

  void grow(uint64_t first, uint64_t end) {
    const uint64_t entries = capacity(), more = std::max<uint64_t>(8, 2 * entries);
    const Addr bigger = mem_.allocate(more * 8);
    for (uint64_t i = 0; i < more; ++i) mem_.fill(bigger + i * 8, uint64_t{0});
    for (uint64_t i = first; i < end; ++i) mem_.fill(bigger + (i & (more - 1)) * 8, mem_.load(entry(i)));
    if (entries > 0) mem_.release(mem_.load(at_), entries * 8);
    mem_.store(at_, bigger);
    mem_.store(at_ + kEntries, more);
  }

  Mem& mem_;
  Addr at_;
  size_t bytes_;
};

}  // namespace statepool::store
