#include "sample.h"
#include "simd.h"

namespace statepool::STATEPOOL_NS {
namespace {

const float kInfinity = __builtin_inff();

// The last lanes of a row, filled up with -inf: they weigh nothing.
STATEPOOL_INLINE F16 tail(const float* x, int64_t n) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = i < n ? x[i] : -kInfinity;
  return load(lanes);
}

float row_max(const float* x, int64_t n) {
  F16 top = set1(-kInfinity);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) top = max(load(x + i), top);
  if (i < n) top = max(tail(x + i, n - i), top);
  return tree_max(top);
}

double exp_sum(const float* x, int64_t n, float top) {
  const F16 m = set1(top);
  double total = 0.0;
  for (int64_t block = 0; block < n; block += 1024) {
    const int64_t end = block + 1024 < n ? block + 1024 : n;
    F16 sum = zero();
    int64_t i = block;
    for (; i + 16 <= end; i += 16) sum = add(sum, exp16(sub(load(x + i), m)));
    if (i < end) sum = add(sum, exp16(sub(tail(x + i, end - i), m)));
    total += static_cast<double>(tree_sum(sum));
  }
  return total;
}

// floor(2^42 * p) in two exact steps of 20 and 22 bits, which the compiler can keep in 32-bit lanes. NaN weighs nothing.
STATEPOOL_INLINE void weigh16(F16 x, F16 m, F16 inverse_temperature, uint64_t* weights) {
  float p[16];
  store(p, exp16(mul(sub(x, m), inverse_temperature)));
  for (int i = 0; i < 16; ++i) {
    const float scaled = (p[i] >= 0.0f ? p[i] : 0.0f) * 0x1p20f;
    const int32_t high = static_cast<int32_t>(scaled);
    const int32_t low = static_cast<int32_t>((scaled - static_cast<float>(high)) * 0x1p22f);
    weights[i] = static_cast<uint64_t>(static_cast<uint32_t>(high)) << 22 | static_cast<uint32_t>(low);
  }
}

void weigh(const float* x, int64_t n, float top, float inverse_temperature, uint64_t* weights) {
  const F16 m = set1(top), scale = set1(inverse_temperature);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) weigh16(load(x + i), m, scale, weights + i);
  if (i < n) {
    uint64_t last[16];
    weigh16(tail(x + i, n - i), m, scale, last);
    std::memcpy(weights + i, last, static_cast<size_t>(n - i) * sizeof(uint64_t));
  }
}

}  // namespace

extern const SampleKernels sample_kernels;
const SampleKernels sample_kernels = {&row_max, &exp_sum, &weigh};

}  // namespace statepool::STATEPOOL_NS
