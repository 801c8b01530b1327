// The last step of every product: bias, residual, and the store of one strip of one row. Kernel files only.
#pragma once

#include "gemm_kernels.h"
#include "simd.h"

namespace statepool::STATEPOOL_NS {

// out = residual + (y + bias), on the lanes of strip `strip` that exist.
STATEPOOL_INLINE void finish(const GemmJob& job, int64_t row, int64_t strip, F16 y) {
  const int64_t column = strip * 16;
  if (job.bias) y = add(y, load(job.bias + column));
  float* out = job.out + row * job.stride + column;
  const float* residual = job.residual ? job.residual + row * job.stride + column : nullptr;
  if (column + 16 <= job.n) {
    if (residual) y = add(load(residual), y);
    store(out, y);
    return;
  }
  const size_t bytes = static_cast<size_t>(job.n - column) * sizeof(float);
  float lanes[16] = {};
  if (residual) {
    std::memcpy(lanes, residual, bytes);
    y = add(load(lanes), y);
  }
  store(lanes, y);
  std::memcpy(out, lanes, bytes);
}

}  // namespace statepool::STATEPOOL_NS
