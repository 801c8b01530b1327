// Distances from one float query to stored vectors of any element type, many ids per call with prefetch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../isa.h"

namespace statepool {

enum class Dtype : int { f32 = 0, f16 = 1, bf16 = 2, i8 = 3 };
constexpr int kDtypes = 4;

// A row is `dims` elements (a multiple of 16, zero beyond the vector), for i8 followed by its float scale.
// The sum runs in 4 x 16 lanes and then a fixed tree, so every instruction set gives the same bits.
struct DistanceKernels {
  using Many = void (*)(const float* query, const char* base, size_t stride, const uint32_t* ids, int count, int dims,
                        float* out);
  Many squared[kDtypes];  // sum (q - x)^2
  Many dot[kDtypes];      // sum q * x
  // One stored row as floats.
  void (*decode[kDtypes])(const char* row, float* out, int dims);
  // Floats as a stored row, rounded to nearest even; i8 scales by the largest magnitude.
  void (*encode[kDtypes])(const float* x, char* row, int dims);
};

}  // namespace statepool

STATEPOOL_KERNELS(DistanceKernels, distance_kernels)
