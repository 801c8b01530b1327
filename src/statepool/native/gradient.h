// The way back through the element-wise parts of a decoder layer: RMSNorm, RoPE, softmax, silu * up.
#pragma once

#include <cstdint>

#include "isa.h"

namespace statepool {

struct GradientKernels {
  // Of y = x / sqrt(mean(x^2) + eps) * w: `up` is the gradient at y and becomes that at x, `own` gains that at w. With
  // u = x / sqrt(...): own += up * u and up = (up * w - u * mean(up * w * u)) / sqrt(...); any n.
  void (*rms_norm)(const float* x, const float* w, int64_t n, float eps, float* up, float* own);
  // Of y = silu(gate) * other: `above` is the gradient at y and becomes y; gate and other become their gradients; any n.
  void (*silu_mul)(float* gate, float* other, int64_t n, float* above);
  // Attention of one query: scores become their softmax p over the first `seen` of n, but for those `hidden` names among the
  // first `above` (may be null); `up`, the gradient at p, becomes that at the scores, p * (up - along); 0 behind `seen`.
  void (*softmax)(float* scores, float* up, int64_t seen, int64_t n, const bool* hidden, int64_t above, float along);
};

}  // namespace statepool

STATEPOOL_KERNELS(GradientKernels, gradient_kernels)
