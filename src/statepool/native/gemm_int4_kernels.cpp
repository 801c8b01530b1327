// int4 weights in groups of 64 x int8 activations: an exact int32 sum per group, groups added by fma in ascending order.
//
// Weights are nibbles q in 0..15 that mean q - 8, so a group's sum is sum q x - 8 sum x. A group is stored as 16 bf16
// scales and 512 bytes; see Linear::packed_.
#include "gemm_finish.h"

namespace statepool::STATEPOOL_NS {
namespace {

constexpr int64_t kGroupBytes = 32 + 512;

#if defined(STATEPOOL_ISA_avx512)

STATEPOOL_INLINE __m512i broadcast4(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

template <int Rows>
STATEPOOL_INLINE void tile(const GemmJob& job, int64_t row, int64_t strip) {
  F16 acc[Rows];
  for (int r = 0; r < Rows; ++r) acc[r] = zero();
  const uint8_t* group = job.packed + strip * job.strip_bytes;
  const int64_t k = job.k, groups = k / 64;
  const int8_t* x = job.x8 + row * k;
  const int32_t* x_sums = job.x_group_sums + row * groups;
  const __m512i nibble = _mm512_set1_epi8(15);
  for (int64_t g = 0; g < groups; ++g, group += kGroupBytes, x += 64) {
    __m512i low[Rows], high[Rows];  // two chains: the first and the second four columns of each block
    for (int r = 0; r < Rows; ++r) {
      low[r] = _mm512_set1_epi32(-8 * x_sums[r * groups + g]);
      high[r] = _mm512_setzero_si512();
    }
#pragma GCC unroll 8
    for (int b = 0; b < 8; ++b) {
      const __m512i bytes = _mm512_loadu_si512(group + 32 + b * 64);
      const __m512i first = _mm512_and_si512(bytes, nibble);
      const __m512i second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        low[r] = _mm512_dpbusd_epi32(low[r], first, broadcast4(x + r * k + b * 8));
        high[r] = _mm512_dpbusd_epi32(high[r], second, broadcast4(x + r * k + b * 8 + 4));
      }
    }
    const F16 scale = load_bf16(reinterpret_cast<const uint16_t*>(group));
    for (int r = 0; r < Rows; ++r) {
      const F16 sum = {_mm512_cvtepi32_ps(_mm512_add_epi32(low[r], high[r]))};
      acc[r] = fma(scale, sum, acc[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) finish(job, row + r, strip, mul(acc[r], set1(job.x_scales[row + r])));
}

constexpr int kRows = 8;

#elif defined(STATEPOOL_ISA_avx2)

STATEPOOL_INLINE __m256i broadcast4(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}
STATEPOOL_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

template <int Rows>
STATEPOOL_INLINE void tile(const GemmJob& job, int64_t row, int64_t strip) {
  F16 acc[Rows];
  for (int r = 0; r < Rows; ++r) acc[r] = zero();
  const uint8_t* group = job.packed + strip * job.strip_bytes;
  const int64_t k = job.k, groups = k / 64;
  const int8_t* x = job.x8 + row * k;
  const int32_t* x_sums = job.x_group_sums + row * groups;
  const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  for (int64_t g = 0; g < groups; ++g, group += kGroupBytes, x += 64) {
    __m256i sums[Rows][2];
    for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_set1_epi32(-8 * x_sums[r * groups + g]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      // 16-bit sums of 8 products pairs: 8 * 2 * 15 * 127 = 30480, so VPMADDUBSW and the adds cannot saturate.
      __m256i part[Rows][2];
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const uint8_t* bytes = group + 32 + (half * 4 + b) * 64;
        const __m256i a = load256(bytes), c = load256(bytes + 32);
        const __m256i a_first = _mm256_and_si256(a, nibble), c_first = _mm256_and_si256(c, nibble);
        const __m256i a_second = _mm256_and_si256(_mm256_srli_epi16(a, 4), nibble);
        const __m256i c_second = _mm256_and_si256(_mm256_srli_epi16(c, 4), nibble);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const int8_t* values = x + r * k + (half * 4 + b) * 8;
          const __m256i first = broadcast4(values), second = broadcast4(values + 4);
          const __m256i a_pair = _mm256_maddubs_epi16(a_first, first), c_pair = _mm256_maddubs_epi16(c_first, first);
          part[r][0] = b == 0 ? a_pair : _mm256_add_epi16(part[r][0], a_pair);
          part[r][1] = b == 0 ? c_pair : _mm256_add_epi16(part[r][1], c_pair);
          part[r][0] = _mm256_add_epi16(part[r][0], _mm256_maddubs_epi16(a_second, second));
          part[r][1] = _mm256_add_epi16(part[r][1], _mm256_maddubs_epi16(c_second, second));
        }
      }
      for (int r = 0; r < Rows; ++r) {
        sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(part[r][0], ones));
        sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(part[r][1], ones));
      }
    }
    const F16 scale = load_bf16(reinterpret_cast<const uint16_t*>(group));
    for (int r = 0; r < Rows; ++r) {
      const F16 sum = {_mm256_cvtepi32_ps(sums[r][0]), _mm256_cvtepi32_ps(sums[r][1])};
      acc[r] = fma(scale, sum, acc[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) finish(job, row + r, strip, mul(acc[r], set1(job.x_scales[row + r])));
}

constexpr int kRows = 4;

#else

template <int Rows>
void tile(const GemmJob& job, int64_t row, int64_t strip) {
  static_assert(Rows == 1, "the plain kernel takes one row");
  F16 acc = zero();
  const int64_t groups = job.k / 64;
  const uint8_t* group = job.packed + strip * job.strip_bytes;
  const int8_t* x = job.x8 + row * job.k;
  for (int64_t g = 0; g < groups; ++g, group += kGroupBytes, x += 64) {
    int32_t sums[16];
    for (int i = 0; i < 16; ++i) sums[i] = -8 * job.x_group_sums[row * groups + g];
    for (int b = 0; b < 8; ++b)
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j) {
          const uint8_t byte = group[32 + b * 64 + i * 4 + j];
          sums[i] += (byte & 15) * x[b * 8 + j] + (byte >> 4) * x[b * 8 + 4 + j];
        }
    acc = fma(load_bf16(reinterpret_cast<const uint16_t*>(group)), from_int(sums), acc);
  }
  finish(job, row, strip, mul(acc, set1(job.x_scales[row])));
}

constexpr int kRows = 1;

#endif

#if defined(STATEPOOL_ISA_avx512) || defined(STATEPOOL_ISA_avx2)
STATEPOOL_INLINE void remaining(const GemmJob& job, int64_t row, int64_t strip) {
  switch (job.rows - row) {
    case 1: tile<1>(job, row, strip); break;
    case 2: tile<2>(job, row, strip); break;
    case 3: tile<3>(job, row, strip); break;
    case 4: tile<4>(job, row, strip); break;
#if defined(STATEPOOL_ISA_avx512)
    case 5: tile<5>(job, row, strip); break;
    case 6: tile<6>(job, row, strip); break;
    case 7: tile<7>(job, row, strip); break;
#endif
    default: break;
  }
}
#else
STATEPOOL_INLINE void remaining(const GemmJob&, int64_t, int64_t) {}
#endif

void run(const GemmJob& job, int64_t first, int64_t last) {
  for (int64_t strip = first; strip < last; ++strip) {
    int64_t row = 0;
    for (; row + kRows <= job.rows; row += kRows) tile<kRows>(job, row, strip);
    remaining(job, row, strip);
  }
}

}  // namespace

extern const GemmKernel gemm_int4;
const GemmKernel gemm_int4 = {&run};

}  // namespace statepool::STATEPOOL_NS
