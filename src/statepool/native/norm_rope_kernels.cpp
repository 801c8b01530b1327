#include "norm_rope.h"
#include "simd.h"

namespace statepool::STATEPOOL_NS {
namespace {

// The last lanes of a row, filled up with zeros.
STATEPOOL_INLINE F16 tail(const float* x, int64_t n) {
  float lanes[16] = {};
  std::memcpy(lanes, x, static_cast<size_t>(n) * sizeof(float));
  return load(lanes);
}

void rms_norm(const float* x, const float* w, int64_t n, float eps, float* y) {
  const int64_t whole = n / 16 * 16;
  F16 squares = zero();
  for (int64_t i = 0; i < whole; i += 16) squares = fma(load(x + i), load(x + i), squares);
  if (whole < n) {
    const F16 rest = tail(x + whole, n - whole);
    squares = fma(rest, rest, squares);
  }
  const float mean = tree_sum(squares) / static_cast<float>(n);
  const float inverse = 1.0f / std::sqrt(mean + eps);
  for (int64_t i = 0; i < whole; i += 16) store(y + i, mul(mul(load(x + i), set1(inverse)), load(w + i)));
  for (int64_t i = whole; i < n; ++i) y[i] = x[i] * inverse * w[i];
}

// Element by element: the lanes play no part in the result, so heads narrower than two vectors need no second path.
void rope(const float* x, const float* cos, const float* sin, int64_t head_dim, float* y) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    y[i] = __builtin_fmaf(a, cos[i], -(b * sin[i]));
    y[i + half] = __builtin_fmaf(b, cos[i], a * sin[i]);
  }
}

void put_key(const float* key, int64_t head_dim, int64_t offset, void* page, bool bf16) {
  if (bf16) {
    uint16_t rounded[16];
    uint16_t* out = static_cast<uint16_t*>(page) + offset;
    for (int64_t d = 0; d < head_dim; d += 16) {
      store_bf16(rounded, load(key + d));
      for (int i = 0; i < 16; ++i) out[(d + i) * 16] = rounded[i];
    }
  } else {
    float* out = static_cast<float*>(page) + offset;
    for (int64_t d = 0; d < head_dim; ++d) out[d * 16] = key[d];
  }
}

void put_value(const float* value, int64_t head_dim, int64_t offset, void* page, bool bf16) {
  if (bf16) {
    uint16_t* out = static_cast<uint16_t*>(page) + offset * head_dim;
    for (int64_t d = 0; d < head_dim; d += 16) store_bf16(out + d, load(value + d));
  } else {
    std::memcpy(static_cast<float*>(page) + offset * head_dim, value, sizeof(float) * static_cast<size_t>(head_dim));
  }
}

STATEPOOL_INLINE F16 silu_mul16(F16 gate, F16 up) {
  return mul(div(gate, add(set1(1.0f), exp16(neg(gate)))), up);
}

void silu_mul(const float* gate, const float* up, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, silu_mul16(load(gate + i), load(up + i)));
  if (i < n) {
    float rest[16];
    store(rest, silu_mul16(tail(gate + i, n - i), tail(up + i, n - i)));
    std::memcpy(y + i, rest, static_cast<size_t>(n - i) * sizeof(float));
  }
}

void widen(const uint16_t* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, load_bf16(x + i));
  for (; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    std::memcpy(y + i, &bits, sizeof(bits));
  }
}

}  // namespace

extern const NormRopeKernels norm_rope_kernels;
const NormRopeKernels norm_rope_kernels = {&rms_norm, &rope, &put_key, &put_value, &silu_mul, &widen};

}  // namespace statepool::STATEPOOL_NS
