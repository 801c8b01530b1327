// Element-wise work over float arrays: exp16 and bf16 conversion, as every other kernel does them.
#pragma once

#include <cstdint>

#include "isa.h"

namespace statepool {

struct VectorKernels {
  void (*exp)(const float* x, float* out, int64_t n);
  void (*to_bf16)(const float* x, uint16_t* out, int64_t n);
  void (*from_bf16)(const uint16_t* x, float* out, int64_t n);
  float (*sum)(const float* x, int64_t n);  // lanes ascending, then the tree
};

}  // namespace statepool

STATEPOOL_KERNELS(VectorKernels, vector_kernels)
