// int4 weights in groups of 64 x int8 activations: an exact int32 sum per group, groups added by fma in ascending order.
//
// Weights are nibbles q in 0..15 that mean q - 8, so a group's sum is sum q x - 8 sum x. A group is stored as 16 bf16
// scales and 512 bytes; see Linear::packed_.
#include "gemm_finish.h"

namespace statepool::STATEPOOL_NS {
namespace {

// Bytes that a stream of weights is prefetched ahead: one core's own prefetcher stops short of the memory's speed.
constexpr int64_t kAhead = 4096;

constexpr int64_t kGroupBytes = 32 + 512;

#if defined(STATEPOOL_ISA_avx512)

STATEPOOL_INLINE __m512i broadcast4(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

template <int Rows>
STATEPOOL_NOINLINE void tile(const GemmJob& job, int64_t row, int64_t strip) {
  F16 acc[Rows];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) acc[r] = zero();
  const uint8_t* group = job.packed + strip * job.strip_bytes;
  const int64_t k = job.k, groups = k / 64;
  const int8_t* x = job.x8 + row * k;
  const int32_t* x_sums = job.x_group_sums + row * groups;
  const __m512i nibble = _mm512_set1_epi8(15);
  for (int64_t g = 0; g < groups; ++g, group += kGroupBytes, x += 64) {
    __m512i low[Rows], high[Rows];  // two chains: the first and the second four columns of each block
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      low[r] = _mm512_set1_epi32(-8 * x_sums[r * groups + g]);
      high[r] = _mm512_setzero_si512();
    }
#pragma GCC unroll 16
    for (int b = 0; b < 8; ++b) {
      const __m512i bytes = _mm512_loadu_si512(group + 32 + b * 64);
      _mm_prefetch(reinterpret_cast<const char*>(group + b * 64 + kAhead), _MM_HINT_T0);
      const __m512i first = _mm512_and_si512(bytes, nibble);
      const __m512i second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        low[r] = _mm512_dpbusd_epi32(low[r], first, broadcast4(x + r * k + b * 8));
        high[r] = _mm512_dpbusd_epi32(high[r], second, broadcast4(x + r * k + b * 8 + 4));
      }
    }
    const F16 scale = load_bf16(reinterpret_cast<const uint16_t*>(group));
#pragma GCC unroll 16
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

// 16-bit sums of pairs of products. Eight of them add up to at most 8 * 2 * 15 * 127 = 30480: nothing can saturate.
template <int Rows>
STATEPOOL_INLINE void multiply(__m256i (*part)[2], const int8_t* x, int64_t k, __m256i low, __m256i high) {
  // The empty asm statements pin registers, as in the int8 kernel.
  __asm__("" : "+x"(low), "+x"(high));
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    const __m256i values = broadcast4(x + r * k);
    part[r][0] = _mm256_add_epi16(part[r][0], _mm256_maddubs_epi16(low, values));
    part[r][1] = _mm256_add_epi16(part[r][1], _mm256_maddubs_epi16(high, values));
    __asm__("" : "+x"(part[r][0]), "+x"(part[r][1]));
  }
}

template <int Rows>
STATEPOOL_NOINLINE void tile(const GemmJob& job, int64_t row, int64_t strip) {
  __m256 acc[Rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  const uint8_t* group = job.packed + strip * job.strip_bytes;
  const int64_t k = job.k, groups = k / 64;
  const int8_t* x = job.x8 + row * k;
  const int32_t* x_sums = job.x_group_sums + row * groups;
  const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  for (int64_t g = 0; g < groups; ++g, group += kGroupBytes, x += 64) {
    __m256i sums[Rows][2];
#pragma GCC unroll 16
    for (int half = 0; half < 2; ++half) {
      __m256i part[Rows][2];
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) part[r][0] = part[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 16
      for (int b = half * 4; b < half * 4 + 4; ++b) {
        const __m256i low = load256(group + 32 + b * 64), high = load256(group + 64 + b * 64);
        _mm_prefetch(reinterpret_cast<const char*>(group + b * 64 + kAhead), _MM_HINT_T0);
        multiply<Rows>(part, x + b * 8, k, _mm256_and_si256(low, nibble), _mm256_and_si256(high, nibble));
        multiply<Rows>(part, x + b * 8 + 4, k, _mm256_and_si256(_mm256_srli_epi16(low, 4), nibble),
                       _mm256_and_si256(_mm256_srli_epi16(high, 4), nibble));
      }
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const __m256i offset = _mm256_set1_epi32(-8 * x_sums[r * groups + g]);
        sums[r][0] = _mm256_add_epi32(half ? sums[r][0] : offset, _mm256_madd_epi16(part[r][0], ones));
        sums[r][1] = _mm256_add_epi32(half ? sums[r][1] : offset, _mm256_madd_epi16(part[r][1], ones));
      }
    }
    const F16 scale = load_bf16(reinterpret_cast<const uint16_t*>(group));
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      acc[r][0] = _mm256_fmadd_ps(scale.lo, _mm256_cvtepi32_ps(sums[r][0]), acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(scale.hi, _mm256_cvtepi32_ps(sums[r][1]), acc[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
    finish(job, row + r, strip, mul(F16{acc[r][0], acc[r][1]}, set1(job.x_scales[row + r])));
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
#pragma GCC unroll 16
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
