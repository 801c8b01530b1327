// Choosing a token from a row of logits. Sums that decide are integers, so no order of work can change a choice.
#pragma once

#include <cstdint>

#include "isa.h"

namespace statepool {

struct SampleKernels {
  float (*max)(const float* x, int64_t n);
  // Sum of exp(x - max): per 1024 tokens sixteen lanes ascending and the tree, these in double, ascending.
  double (*exp_sum)(const float* x, int64_t n, float max);
  // weights[i] = floor(2^42 * exp((x[i] - max) * inverse_temperature)); the largest logit weighs exactly 2^42.
  void (*weigh)(const float* x, int64_t n, float max, float inverse_temperature, uint64_t* weights);
};

constexpr int kWeightBits = 42;  // 2^20 tokens of full weight still fit 63 bits

}  // namespace statepool

STATEPOOL_KERNELS(SampleKernels, sample_kernels)
