// Spans and little-endian words: every number in a store's files and heap is little endian, on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace statepool::store {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the store's formats are read and written in place");

using Bytes = std::string_view;

constexpr size_t kSector = 4096;  // unit of direct I/O; frames and checkpoints start and end on it

constexpr uint64_t round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

template <class T>
T load_as(const void* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <class T>
void store_as(void* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}

// Eight bytes of a key from `skip` on, zeros behind its end, as a number: keys with different ones are ordered as these.
inline uint64_t prefix_of(Bytes key, size_t skip = 0) {
  uint64_t word = 0;
  if (skip < key.size()) std::memcpy(&word, key.data() + skip, key.size() - skip < 8 ? key.size() - skip : 8);
  return __builtin_bswap64(word);
}

}  // namespace statepool::store
