// Elements of the KV pool as floats: bf16 bits, or floats as they are.
#pragma once

#include <cstdint>
#include <cstring>

namespace statepool {

inline float widen(uint16_t bits) {
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}
inline float widen(float x) { return x; }

}  // namespace statepool
