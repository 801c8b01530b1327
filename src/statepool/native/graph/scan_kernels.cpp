#include "scan.h"

#include "../simd.h"

#if defined(__ARM_NEON) && !defined(STATEPOOL_X86)
#include <arm_neon.h>
#endif

namespace statepool::STATEPOOL_NS {
namespace {

#include "half.inc"

// Lane i of the answer is lane i ^ kStep.
template <int kStep>
STATEPOOL_INLINE F16 partner(F16 a) {
#if defined(STATEPOOL_ISA_avx512)
  if constexpr (kStep == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
  if constexpr (kStep == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  if constexpr (kStep == 2) return {_mm512_permute_ps(a.v, 0x4e)};
  return {_mm512_permute_ps(a.v, 0xb1)};
#elif defined(STATEPOOL_ISA_avx2)
  if constexpr (kStep == 8) return {a.hi, a.lo};
  if constexpr (kStep == 4) return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
  if constexpr (kStep == 2) return {_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e)};
  return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
#else
  F16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i ^ kStep];
  return r;
#endif
}

// Sums in the lanes without the bit kStep, differences in those with it.
template <int kStep>
STATEPOOL_INLINE F16 butterfly(F16 a) {
  alignas(64) float signs[16];
  for (int i = 0; i < 16; ++i) signs[i] = (i & kStep) ? -1.0f : 1.0f;
  return fma(load(signs), a, partner<kStep>(a));
}

void hadamard(float* x, const float* signs, int size) {
  float scale = 1.0f;
  for (int rest = size; rest > 1; rest /= 4) scale *= rest == 2 ? 0.70710678118654752f : 0.5f;
  for (int i = 0; i < size; i += 16) {
    const F16 a = mul(load(x + i), mul(load(signs + i), set1(scale)));
    store(x + i, butterfly<1>(butterfly<2>(butterfly<4>(butterfly<8>(a)))));
  }
  for (int width = 16; width < size; width *= 2)
    for (int block = 0; block < size; block += 2 * width)
      for (int i = block; i < block + width; i += 16) {
        const F16 a = load(x + i), b = load(x + i + width);
        store(x + i, add(a, b));
        store(x + i + width, sub(a, b));
      }
}

// Nearest even; values are within 0 to 255.
STATEPOOL_INLINE void store_byte(uint8_t* p, F16 a) {
#if defined(STATEPOOL_ISA_avx512)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
#else
  float lanes[16];
  store(lanes, add(a, set1(12582912.0f)));  // rounds to integer
  for (int i = 0; i < 16; ++i) {
    uint32_t bits;
    std::memcpy(&bits, lanes + i, 4);
    p[i] = static_cast<uint8_t>(bits);
  }
#endif
}

void tables(const float* query, int tables, uint8_t* out, float* delta, float* offset) {
  float widest = 0.0f, least = 0.0f;
  for (int t = 0; t < tables; ++t) {
    const float* q = query + 4 * t;
    const float reach = std::fabs(q[0]) + std::fabs(q[1]) + std::fabs(q[2]) + std::fabs(q[3]);
    widest = reach > widest ? reach : widest;
    least -= reach;
  }
  *delta = 2.0f * widest / 255.0f;
  *offset = least;
  const F16 inverse = set1(widest > 0.0f ? 255.0f / (2.0f * widest) : 0.0f);
  alignas(64) float signs[4][16];
  for (int d = 0; d < 4; ++d)
    for (int b = 0; b < 16; ++b) signs[d][b] = (b >> d & 1) ? 1.0f : -1.0f;
  const F16 s0 = load(signs[0]), s1 = load(signs[1]), s2 = load(signs[2]), s3 = load(signs[3]);
  for (int t = 0; t < tables; ++t) {
    const float* q = query + 4 * t;
    F16 sum = set1(std::fabs(q[0]) + std::fabs(q[1]) + std::fabs(q[2]) + std::fabs(q[3]));
    sum = fma(s0, set1(q[0]), sum);
    sum = fma(s1, set1(q[1]), sum);
    sum = fma(s2, set1(q[2]), sum);
    sum = fma(s3, set1(q[3]), sum);
    store_byte(out + 16 * t, mul(sum, inverse));
  }
}

// Sums of table entries per neighbour, exact in 32 bits; the same whatever computes them.
#if defined(STATEPOOL_ISA_avx512) && !defined(STATEPOOL_SIMDE)
STATEPOOL_INLINE void sums(const uint8_t* codes, const uint8_t* lookup, int tables, int32_t* out) {
  const __m512i low = _mm512_set1_epi8(15);
  __m512i all_a = _mm512_setzero_si512(), odd_a = all_a, all_b = all_a, odd_b = all_a;
  for (int t = 0; t < tables; t += 4) {
    const __m512i code = _mm512_loadu_si512(codes + 16 * t), table = _mm512_loadu_si512(lookup + 16 * t);
    const __m512i a = _mm512_shuffle_epi8(table, _mm512_and_si512(code, low));
    const __m512i b = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(code, 4), low));
    all_a = _mm512_add_epi16(all_a, a);
    odd_a = _mm512_add_epi16(odd_a, _mm512_srli_epi16(a, 8));
    all_b = _mm512_add_epi16(all_b, b);
    odd_b = _mm512_add_epi16(odd_b, _mm512_srli_epi16(b, 8));
  }
  const auto finish = [](__m512i all, __m512i odd, int32_t* to) {
    const __m512i even = _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8));
    // Byte 2i of a lane is neighbour 2i: even holds 0 2 4 …, odd 1 3 5 …; four lanes add up.
    const auto lanes = [](__m512i x) {
      const __m512i lo = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x));
      const __m512i hi = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1));
      const __m512i sum = _mm512_add_epi32(lo, hi);
      return _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
    };
    const __m256i e = lanes(even), o = lanes(odd);
    const __m256i first = _mm256_unpacklo_epi32(e, o), second = _mm256_unpackhi_epi32(e, o);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(first, second, 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), _mm256_permute2x128_si256(first, second, 0x31));
  };
  finish(all_a, odd_a, out);
  finish(all_b, odd_b, out + 16);
}
#elif defined(STATEPOOL_ISA_avx2) || defined(STATEPOOL_ISA_avx512)
STATEPOOL_INLINE void sums(const uint8_t* codes, const uint8_t* lookup, int tables, int32_t* out) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i all_a = _mm256_setzero_si256(), odd_a = all_a, all_b = all_a, odd_b = all_a;
  for (int t = 0; t < tables; t += 2) {
    const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 16 * t));
    const __m256i table = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lookup + 16 * t));
    const __m256i a = _mm256_shuffle_epi8(table, _mm256_and_si256(code, low));
    const __m256i b = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(code, 4), low));
    all_a = _mm256_add_epi16(all_a, a);
    odd_a = _mm256_add_epi16(odd_a, _mm256_srli_epi16(a, 8));
    all_b = _mm256_add_epi16(all_b, b);
    odd_b = _mm256_add_epi16(odd_b, _mm256_srli_epi16(b, 8));
  }
  const auto finish = [](__m256i all, __m256i odd, int32_t* to) {
    const __m256i even = _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8));
    const auto lanes = [](__m256i x) {
      return _mm256_add_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                              _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
    };
    const __m256i e = lanes(even), o = lanes(odd);
    const __m256i first = _mm256_unpacklo_epi32(e, o), second = _mm256_unpackhi_epi32(e, o);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(first, second, 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), _mm256_permute2x128_si256(first, second, 0x31));
  };
  finish(all_a, odd_a, out);
  finish(all_b, odd_b, out + 16);
}
#elif defined(__ARM_NEON) && defined(__aarch64__)
STATEPOOL_INLINE void sums(const uint8_t* codes, const uint8_t* lookup, int tables, int32_t* out) {
  const uint8x16_t low = vdupq_n_u8(15);
  uint16x8_t total[4] = {vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0)};
  uint32x4_t wide[8];
  for (uint32x4_t& w : wide) w = vdupq_n_u32(0);
  const auto spill = [&] {
    for (int i = 0; i < 4; ++i) {
      wide[2 * i] = vaddw_u16(wide[2 * i], vget_low_u16(total[i]));
      wide[2 * i + 1] = vaddw_u16(wide[2 * i + 1], vget_high_u16(total[i]));
      total[i] = vdupq_n_u16(0);
    }
  };
  for (int t = 0; t < tables; ++t) {
    const uint8x16_t code = vld1q_u8(codes + 16 * t), table = vld1q_u8(lookup + 16 * t);
    const uint8x16_t a = vqtbl1q_u8(table, vandq_u8(code, low)), b = vqtbl1q_u8(table, vshrq_n_u8(code, 4));
    total[0] = vaddw_u8(total[0], vget_low_u8(a));
    total[1] = vaddw_u8(total[1], vget_high_u8(a));
    total[2] = vaddw_u8(total[2], vget_low_u8(b));
    total[3] = vaddw_u8(total[3], vget_high_u8(b));
    if (t % 256 == 255) spill();
  }
  spill();
  for (int i = 0; i < 8; ++i) vst1q_s32(out + 4 * i, vreinterpretq_s32_u32(wide[i]));
}
#else
STATEPOOL_INLINE void sums(const uint8_t* codes, const uint8_t* lookup, int tables, int32_t* out) {
  for (int j = 0; j < kScanLanes; ++j) out[j] = 0;
  for (int t = 0; t < tables; ++t)
    for (int j = 0; j < 16; ++j) {
      out[j] += lookup[16 * t + (codes[16 * t + j] & 15)];
      out[j + 16] += lookup[16 * t + (codes[16 * t + j] >> 4)];
    }
}
#endif

STATEPOOL_INLINE uint32_t below(F16 a, float bound) {
#if defined(STATEPOOL_ISA_avx512) && !defined(STATEPOOL_SIMDE)
  return _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(bound), _CMP_LT_OQ);
#else
  float lanes[16];
  store(lanes, a);
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(lanes[i] < bound) << i;
  return mask;
#endif
}

// The lanes whose bit is set with the other sign.
STATEPOOL_INLINE F16 negated(F16 a, uint32_t lanes) {
#if defined(STATEPOOL_ISA_avx512) && !defined(STATEPOOL_SIMDE)
  return {_mm512_mask_sub_ps(a.v, static_cast<__mmask16>(lanes), _mm512_setzero_ps(), a.v)};
#else
  float values[16];
  store(values, a);
  for (int k = 0; k < 16; ++k) values[k] = (lanes >> k & 1u) ? -values[k] : values[k];
  return load(values);
#endif
}

uint32_t scan(const uint8_t* codes, const uint8_t* lookup, int tables, const uint16_t* more, const uint16_t* scale,
              float delta, float offset, float base, float bound, float* out) {
  constexpr int kPart = 512;  // tables that 16-bit sums hold on every set
  alignas(64) int32_t sum[kScanLanes], part[kScanLanes];
  sums(codes, lookup, tables < kPart ? tables : kPart, sum);
  for (int t = kPart; t < tables; t += kPart) {
    sums(codes + 16 * t, lookup + 16 * t, tables - t < kPart ? tables - t : kPart, part);
    for (int j = 0; j < kScanLanes; ++j) sum[j] += part[j];
  }
  uint32_t mask = 0;
  for (int half = 0; half < kScanLanes; half += 16) {
    const F16 signed_sum = fma(from_int(sum + half), set1(delta), set1(offset));
    const F16 estimate = fma(load_half(scale + half), signed_sum, add(load_half(more + half), set1(base)));
    store(out + half, estimate);
    mask |= below(estimate, bound) << half;
  }
  return mask;
}

void code(const float* u, const float* v, int dims, uint16_t* signs, float* length, float* reach, float* along) {
  F16 lengths = zero(), reaches = zero(), alongs = zero();
  for (int i = 0; i < dims; i += 16) {
    const F16 center = load(v + i), r = sub(load(u + i), center);
    const uint32_t negative = below(r, 0.0f);
    signs[i / 16] = static_cast<uint16_t>(~negative);
    lengths = fma(r, r, lengths);
    const F16 size = abs(r);
    reaches = add(reaches, size);
    alongs = add(alongs, negated(center, negative));
  }
  *length = tree_sum(lengths);
  *reach = tree_sum(reaches);
  *along = tree_sum(alongs);
}

}  // namespace

extern const ScanKernels scan_kernels;
const ScanKernels scan_kernels = {&hadamard, &code, &tables, &scan};

}  // namespace statepool::STATEPOOL_NS
