// A candidate in eight bytes that sort by (distance, id).
#pragma once

#include <cstdint>
#include <cstring>

namespace statepool::graph {

// The distance in an order-keeping code, the id (31 bits), the expanded bit; compared as a signed integer.
using Entry = int64_t;

constexpr Entry kNoBound = 0x7f800000ffffffff;  // the entry of an infinite distance

inline Entry entry_of(float distance, uint32_t id) {
  int32_t bits;
  std::memcpy(&bits, &distance, 4);
  bits ^= (bits >> 31) & 0x7fffffff;
  return static_cast<Entry>(static_cast<uint64_t>(static_cast<uint32_t>(bits)) << 32 | static_cast<uint64_t>(id) << 1);
}
inline float distance_of(Entry entry) {
  int32_t bits = static_cast<int32_t>(entry >> 32);
  bits ^= (bits >> 31) & 0x7fffffff;
  float distance;
  std::memcpy(&distance, &bits, 4);
  return distance;
}
inline int32_t code_of(Entry entry) { return static_cast<int32_t>(entry >> 32); }  // of the distance alone
inline uint32_t id_of(Entry entry) { return static_cast<uint32_t>(entry) >> 1; }
inline bool expanded(Entry entry) { return entry & 1; }

}  // namespace statepool::graph
