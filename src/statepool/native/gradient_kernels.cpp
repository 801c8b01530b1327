#include "gradient.h"
#include "simd.h"

namespace statepool::STATEPOOL_NS {
namespace {

// Sixteen items of a row, or its last few and zeros.
STATEPOOL_INLINE F16 some(const float* x, int64_t count) {
  if (count >= 16) return load(x);
  float lanes[16] = {};
  std::memcpy(lanes, x, static_cast<size_t>(count) * sizeof(float));
  return load(lanes);
}

STATEPOOL_INLINE void put(float* x, int64_t count, F16 value) {
  if (count >= 16) return store(x, value);
  float lanes[16];
  store(lanes, value);
  std::memcpy(x, lanes, static_cast<size_t>(count) * sizeof(float));
}

void rms_norm(const float* x, const float* w, int64_t n, float eps, float* up, float* own) {
  F16 squares = zero(), products = zero();
  for (int64_t i = 0; i < n; i += 16) {
    const F16 value = some(x + i, n - i);
    squares = fma(value, value, squares);
    products = fma(mul(some(up + i, n - i), some(w + i, n - i)), value, products);
  }
  const float count = static_cast<float>(n);
  const float inverse = 1.0f / std::sqrt(tree_sum(squares) / count + eps);
  const F16 scale = set1(inverse), share = set1(tree_sum(products) / count * inverse);
  for (int64_t i = 0; i < n; i += 16) {
    const F16 unit = mul(some(x + i, n - i), scale), above = some(up + i, n - i);
    put(own + i, n - i, fma(above, unit, some(own + i, n - i)));
    put(up + i, n - i, mul(sub(mul(above, some(w + i, n - i)), mul(unit, share)), scale));
  }
}

void silu_mul(float* gate, float* other, int64_t n, float* above) {
  const F16 one = set1(1.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const F16 g = some(gate + i, n - i), o = some(other + i, n - i), a = some(above + i, n - i);
    const F16 open = div(one, add(one, exp16(neg(g)))), passed = mul(g, open);
    put(above + i, n - i, mul(passed, o));
    put(other + i, n - i, mul(a, passed));
    // silu' = s + g s (1 - s)
    put(gate + i, n - i, mul(mul(a, o), fma(passed, sub(one, open), open)));
  }
}

void softmax(float* scores, float* up, int64_t seen, int64_t n, const bool* hidden, int64_t above, float along) {
  const float none = -__builtin_inff();
  if (hidden)
    for (int64_t i = 0; i < above; ++i)
      if (hidden[i]) scores[i] = none;
  F16 top = set1(none), sum = zero();
  const auto at = [&](int64_t i) { return keep_first(some(scores + i, n - i), static_cast<int>(seen - i), none); };
  for (int64_t i = 0; i < seen; i += 16) top = max(at(i), top);
  const F16 most = set1(tree_max(top));
  for (int64_t i = 0; i < seen; i += 16) {
    const F16 power = exp16(sub(at(i), most));
    sum = add(sum, power);
    put(scores + i, n - i, power);
  }
  const F16 scale = set1(1.0f / tree_sum(sum)), less = set1(along);
  for (int64_t i = 0; i < n; i += 16) {
    const F16 p = i < seen ? mul(some(scores + i, n - i), scale) : zero();
    put(scores + i, n - i, p);
    put(up + i, n - i, mul(p, sub(some(up + i, n - i), less)));
  }
}

}  // namespace

extern const GradientKernels gradient_kernels;
const GradientKernels gradient_kernels = {&rms_norm, &silu_mul, &softmax};

}  // namespace statepool::STATEPOOL_NS
