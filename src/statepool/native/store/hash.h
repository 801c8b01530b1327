// The hash of keys: a multiply that folds 128 bits into 64, eight bytes at a time. Part of the heap's layout.
#pragma once

#include "bytes.h"

namespace statepool::store {

inline uint64_t fold(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t hash_bytes(Bytes key) {
  constexpr uint64_t k0 = 0x9e3779b97f4a7c15, k1 = 0xd6e8feb86659fd93;
  uint64_t h = fold(key.size() ^ k0, k1);
  const char* at = key.data();
  size_t left = key.size();
  for (; left > 8; left -= 8, at += 8) h = fold(load_as<uint64_t>(at) ^ h, k0) + k1;
  uint64_t last = 0;
  std::memcpy(&last, at, left);
  return fold(fold(last ^ h, k0), k1 ^ h);
}

}  // namespace statepool::store
