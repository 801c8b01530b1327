// Estimating the distances to 32 neighbours at once from one bit per dimension (RaBitQ codes, FastScan layout).
#pragma once

#include <cstdint>

#include "../isa.h"

namespace statepool {

constexpr int kScanLanes = 32;

// Four dimensions share a table of 16 bytes: entry b is the sum of +q or -q by the bits of b, in steps of `delta` above
// the table's least. Codes hold, table after table, 16 bytes: neighbour j in the low half of byte j, j + 16 in the high half.
struct ScanKernels {
  // In place: times the signs, then the orthonormal Hadamard matrix; size is a power of two of at least 16.
  void (*hadamard)(float* x, const float* signs, int size);
  // The signs of r = u - v, 16 to a word, bit set for r >= 0; and |r|^2, sum |r_i|, sum sign(r_i) v_i.
  void (*code)(const float* u, const float* v, int dims, uint16_t* signs, float* length, float* reach, float* along);
  // Tables of a query of 4 * tables floats (tables a multiple of 4). The signed sum of a code is then
  // delta * (sum of its entries) + offset.
  void (*tables)(const float* query, int tables, uint8_t* out, float* delta, float* offset);
  // out[j] = base + add[j] + scale[j] * (signed sum of code j); add and scale are halves. Answers the lanes below `bound`.
  uint32_t (*scan)(const uint8_t* codes, const uint8_t* lookup, int tables, const uint16_t* add, const uint16_t* scale,
                   float delta, float offset, float base, float bound, float* out);
};

}  // namespace statepool

STATEPOOL_KERNELS(ScanKernels, scan_kernels)
