// The element-wise parts of a decoder layer: RMSNorm, RoPE, writing K and V into their pages, silu * up.
#pragma once

#include <cstdint>

#include "isa.h"

namespace statepool {

struct NormRopeKernels {
  // y = (x * (1 / sqrt(mean(x^2) + eps))) * w; any n; y may be x.
  void (*rms_norm)(const float* x, const float* w, int64_t n, float eps, float* y);
  // Half-split rotation of one head; cos and sin hold head_dim / 2 floats; y may be x.
  void (*rope)(const float* x, const float* cos, const float* sin, int64_t head_dim, float* y);
  // One head's key or value into token `offset` of its page (K transposed), rounded to nearest even for bf16.
  void (*put_key)(const float* key, int64_t head_dim, int64_t offset, void* page, bool bf16);
  void (*put_value)(const float* value, int64_t head_dim, int64_t offset, void* page, bool bf16);
  // y = (gate / (1 + exp(-gate))) * up; any n.
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* y);
  void (*widen)(const uint16_t* x, int64_t n, float* y);
};

}  // namespace statepool

STATEPOOL_KERNELS(NormRopeKernels, norm_rope_kernels)
