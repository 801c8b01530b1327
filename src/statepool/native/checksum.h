// XXH3-64 (seed 0, the default secret) of more than 240 bytes, while they are copied or as they arrive.
#pragma once

#include <cstdint>

#include "isa.h"

namespace statepool {

constexpr int64_t kStripe = 64, kSegment = 1024;  // XXH3 mixes stripes and scrambles after each segment of sixteen

struct ChecksumKernels {
  // Mixes whole segments into the eight lanes and, if target is given, copies them there: what was mixed is what is
  // stored, whoever writes to the source meanwhile. `past` the caches wants a target aligned to 32 bytes.
  void (*segments)(uint64_t* lanes, const uint8_t* source, uint8_t* target, int64_t count, bool past);
  // Mixes stripes, the first with the secret's bytes from `key` on.
  void (*stripes)(uint64_t* lanes, const uint8_t* source, int64_t count, int64_t key);
};

// 192 bytes, of the specification of XXH3.
extern const uint8_t kSecret[192];

}  // namespace statepool

STATEPOOL_KERNELS(ChecksumKernels, checksum_kernels)
