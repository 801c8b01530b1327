// Quantises activation rows and weight strips.
#include "gemm_kernels.h"
#include "simd.h"

namespace statepool::STATEPOOL_NS {
namespace {

// Largest magnitude of x[n]; NaN if any is NaN or infinite.
float magnitude(const float* x, int64_t n) {
  F16 top = zero(), poison = zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F16 v = load(x + i);
    top = max(top, abs(v));
    poison = fma(v, zero(), poison);
  }
  if (i < n) {
    float tail[16] = {};
    std::memcpy(tail, x + i, static_cast<size_t>(n - i) * sizeof(float));
    const F16 v = load(tail);
    top = max(top, abs(v));
    poison = fma(v, zero(), poison);
  }
  return tree_max(top) + tree_sum(poison);
}

bool all_finite(const float* x, int64_t n) { return magnitude(x, n) >= 0.0f; }

int32_t sum_bytes(const int8_t* x, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

float quantize_row(const float* x, int64_t columns, int64_t k, int8_t* data, int16_t* wide, int32_t* sum,
                   int32_t* group_sums) {
  const float top = magnitude(x, columns);
  const float inverse = 127.0f / top;
  float scale = top / 127.0f;
  if (!(top >= 0.0f)) scale = top;  // NaN: every output of this row becomes NaN
  if (top >= 0.0f && !(inverse <= 3.4e38f)) scale = 0.0f;  // zero, or so small that 127/top overflows
  if (!(scale > 0.0f)) {
    std::memset(data, 0, static_cast<size_t>(k));
  } else {
    const F16 factor = set1(inverse);
    int64_t i = 0;
    for (; i + 16 <= columns; i += 16) store_int8(data + i, mul(load(x + i), factor));
    if (i < columns) {
      float tail[16] = {};
      std::memcpy(tail, x + i, static_cast<size_t>(columns - i) * sizeof(float));
      store_int8(data + i, mul(load(tail), factor));
      i += 16;
    }
    if (i < k) std::memset(data + i, 0, static_cast<size_t>(k - i));
  }
  int32_t total = 0;
  for (int64_t g = 0; g < k / 64; ++g) {
    group_sums[g] = sum_bytes(data + g * 64, 64);
    total += group_sums[g];
  }
  *sum = total;
#if defined(STATEPOOL_ISA_avx2)
  for (int64_t i = 0; i < k; i += 4) {
    wide[i] = data[i];
    wide[i + 1] = data[i + 2];
    wide[i + 2] = data[i + 1];
    wide[i + 3] = data[i + 3];
  }
#else
  static_cast<void>(wide);  // nobody reads it
#endif
  return scale;
}

// scratch[16][k] signed bytes to [k/4][16][4] bytes plus 128.
void interleave_int8(const int8_t* scratch, int64_t k, uint8_t* packed) {
  for (int64_t q = 0; q < k / 4; ++q) {
    for (int r = 0; r < 16; ++r) {
      uint32_t word;
      std::memcpy(&word, scratch + r * k + q * 4, 4);
      word ^= 0x80808080u;
      std::memcpy(packed + q * 64 + r * 4, &word, 4);
    }
  }
}

bool pack_int8(const float* rows, int64_t k, uint8_t* packed, float* scales, int8_t* scratch) {
  for (int r = 0; r < 16; ++r) {
    const float* row = rows + r * k;
    int8_t* bytes = scratch + r * k;
    const float top = magnitude(row, k);
    if (!(top >= 0.0f)) return false;
    scales[r] = top / 127.0f;
    if (scales[r] == 0.0f) {
      std::memset(bytes, 0, static_cast<size_t>(k));
      continue;
    }
    const F16 scale = set1(scales[r]), limit = set1(127.0f);
    for (int64_t i = 0; i < k; i += 16)
      store_int8(bytes + i, max(min(div(load(row + i), scale), limit), neg(limit)));
  }
  interleave_int8(scratch, k, packed);
  return true;
}

bool pack_int4(const float* rows, int64_t k, uint8_t* packed, int8_t* scratch) {
  const F16 low = set1(-8.0f), high = set1(7.0f);
  uint16_t group_scales[16];
  for (int64_t g = 0; g < k / 64; ++g) {
    for (int r = 0; r < 16; ++r) {
      const float* row = rows + r * k + g * 64;
      if (!(magnitude(row, 64) >= 0.0f)) return false;
      F16 most = load(row), least = most;
      for (int i = 16; i < 64; i += 16) {
        most = max(most, load(row + i));
        least = min(least, load(row + i));
      }
      const float top = tree_max(most), bottom = -tree_max(neg(least));
      const F16 exact = set1((top > -bottom ? top : bottom) / -8.0f);
      uint16_t rounded[16];
      store_bf16(rounded, exact);
      group_scales[r] = rounded[0];
      const F16 scale = load_bf16(rounded);
      float value[16];
      store(value, scale);
      if (value[0] == 0.0f) {
        std::memset(scratch + r * 64, 0, 64);
        continue;
      }
      for (int i = 0; i < 64; i += 16)
        store_int8(scratch + r * 64 + i, max(min(div(load(row + i), scale), high), low));
    }
    uint8_t* group = packed + g * 544;
    std::memcpy(group, group_scales, 32);
    for (int b = 0; b < 8; ++b) {
      for (int r = 0; r < 16; ++r) {
        for (int j = 0; j < 4; ++j) {
          const int first = scratch[r * 64 + b * 8 + j] + 8, second = scratch[r * 64 + b * 8 + 4 + j] + 8;
          group[32 + b * 64 + r * 4 + j] = static_cast<uint8_t>(first | (second << 4));
        }
      }
    }
  }
  return true;
}

}  // namespace

extern const PackKernels pack_kernels;
const PackKernels pack_kernels = {&quantize_row, &pack_int8, &pack_int4, &all_finite};

}  // namespace statepool::STATEPOOL_NS
