// F16: sixteen float lanes, the one vector type of every float kernel, with the same bits on every instruction set.
//
// Include only from *_kernels.cpp (compiled once per set into namespace STATEPOOL_NS). Such a file must not instantiate
// inline functions of the standard library (containers, algorithms): the linker keeps one copy for the whole module and
// could keep the one that needs wider instructions than the machine has. <cmath>, <cstdint>, <cstring> are safe here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(STATEPOOL_ISA_avx512) && defined(STATEPOOL_SIMDE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include "simde_extra.inc"
#elif defined(STATEPOOL_ISA_avx512) || defined(STATEPOOL_ISA_avx2)
#include <immintrin.h>
#endif

#define STATEPOOL_INLINE inline __attribute__((always_inline))
// For a loop over a register tile: on its own, the compiler finds registers for all of it.
#define STATEPOOL_NOINLINE __attribute__((noinline))

namespace statepool::STATEPOOL_NS {

#if defined(STATEPOOL_ISA_avx512)
#include "simd_avx512.inc"
#elif defined(STATEPOOL_ISA_avx2)
#include "simd_avx2.inc"
#else
#include "simd_generic.inc"
#endif

STATEPOOL_INLINE F16 zero() { return set1(0.0f); }
// Starts reading a line that is wanted later, into the second cache: few reads can be under way to the first, and they hold
// a core to half of what memory gives.
STATEPOOL_INLINE void fetch(const void* line) { __builtin_prefetch(line, 0, 2); }
STATEPOOL_INLINE F16 neg(F16 a) { return xor_bits(a, 0x80000000u); }
STATEPOOL_INLINE F16 abs(F16 a) { return and_bits(a, 0x7fffffffu); }

// Sum and maximum over the lanes by the fixed tree 16 -> 8 -> 4 -> 2 -> 1 (lane i with lane i + width/2).
#if defined(STATEPOOL_ISA_avx512) || defined(STATEPOOL_ISA_avx2)
#if defined(STATEPOOL_ISA_avx512)
STATEPOOL_INLINE __m256 low_half(F16 a) { return _mm512_castps512_ps256(a.v); }
STATEPOOL_INLINE __m256 high_half(F16 a) { return _mm512_extractf32x8_ps(a.v, 1); }
#else
STATEPOOL_INLINE __m256 low_half(F16 a) { return a.lo; }
STATEPOOL_INLINE __m256 high_half(F16 a) { return a.hi; }
#endif
STATEPOOL_INLINE float tree_sum(F16 a) {
  const __m256 eight = _mm256_add_ps(low_half(a), high_half(a));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
STATEPOOL_INLINE float tree_max(F16 a) {
  const __m256 eight = _mm256_max_ps(low_half(a), high_half(a));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
#else
STATEPOOL_INLINE float tree_sum(F16 a) {
  float v[16];
  store(v, a);
  for (int width = 8; width > 0; width >>= 1)
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}
STATEPOOL_INLINE float tree_max(F16 a) {
  float v[16];
  store(v, a);
  for (int width = 8; width > 0; width >>= 1)
    for (int i = 0; i < width; ++i) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
  return v[0];
}
#endif

// tree_sum of sixteen vectors [16][16], sixteen at a time where lanes can be moved cheaply.
STATEPOOL_INLINE F16 tree_sums(const float* v) {
#if defined(STATEPOOL_ISA_avx512) && !defined(STATEPOOL_SIMDE)
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    const __m512 x = _mm512_loadu_ps(v + 16 * i), y = _mm512_loadu_ps(v + 16 * (i + 8));
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  }
  for (int i = 0; i < 4; ++i)
    b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
  for (int i = 0; i < 2; ++i) {
    const __m512d x = _mm512_castps_pd(b[i]), y = _mm512_castps_pd(b[i + 2]);
    c[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const __m512 mixed = _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  return {_mm512_permutexvar_ps(order, mixed)};
#else
  float sums[16];
  for (int i = 0; i < 16; ++i) sums[i] = tree_sum(load(v + 16 * i));
  return load(sums);
#endif
}

// e^x to 1 ulp; 0 below -87.3, held at e^88 above 88, NaN stays NaN. Every softmax, silu and logsumexp uses it.
STATEPOOL_INLINE F16 exp16(F16 x) {
  const F16 low = set1(-87.3f), high = set1(88.0f), magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to integer
  const F16 c = max(low, min(high, x));  // this operand order lets a NaN through
  const F16 t = fma(c, set1(1.44269504088896341f), magic);
  const F16 n = sub(t, magic);
  F16 r = fma(n, set1(-0.693359375f), c);
  r = fma(n, set1(2.12194440e-4f), r);
  // 1 + r + r^2 q(r), q the relative minimax fit on |r| <= ln2/2: 0.05 half-ulp off before rounding.
  F16 p = set1(0.001381453825160861f);
  p = fma(p, r, set1(0.00836874544620514f));
  p = fma(p, r, set1(0.04166838899254799f));
  p = fma(p, r, set1(0.1666652113199234f));
  p = fma(p, r, set1(0.4999999403953552f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return zero_below(mul(p, exponent(t)), x, low);
}

}  // namespace statepool::STATEPOOL_NS
