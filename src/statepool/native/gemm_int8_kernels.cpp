// int8 weights x int8 activations, exact in int32.
//
// Weights are stored as Wq + 128 (unsigned), so sum (Wq+128) x = sum Wq x + 128 sum x: the second part is subtracted at
// the end. That lets VPDPBUSD take the activations as its signed operand straight from memory, and AVX2 split a weight
// byte pair into 16-bit words with one AND and one shift. VPMADDUBSW on bytes is not used: it saturates.
#include "gemm_finish.h"

namespace statepool::STATEPOOL_NS {
namespace {

// Bytes that a stream of weights is prefetched ahead: one core's own prefetcher stops short of the memory's speed.
constexpr int64_t kAhead = 4096;
constexpr int64_t kAheadEach = 512;  // of several streams at once

// `job` is a copy: of one behind a reference, every field would be read again after every store.
STATEPOOL_INLINE void finish_rows(const GemmJob job, int64_t row, int rows, int64_t strip, const int32_t* sums) {
  const F16 weight_scales = load(job.weight_scales + strip * 16);
  for (int r = 0; r < rows; ++r) {
    const F16 exact = from_int(sums + r * 16, 128u * static_cast<uint32_t>(job.x_sums[row + r]));
    finish(job, row + r, strip, mul(mul(exact, weight_scales), set1(job.x_scales[row + r])));
  }
}

#if defined(STATEPOOL_ISA_avx512)

STATEPOOL_INLINE __m512i broadcast4(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

template <int Rows, int Strips>
STATEPOOL_NOINLINE void tile(const GemmJob& job, int64_t row, int64_t strip) {
  __m512i acc[Rows][Strips];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
    for (int s = 0; s < Strips; ++s) acc[r][s] = _mm512_setzero_si512();
  const uint8_t* w = job.packed + strip * job.strip_bytes;
  const int8_t* x = job.x8 + row * job.k;
  const int64_t k = job.k, strip_bytes = job.strip_bytes;
  for (int64_t q = 0; q < k / 4; ++q) {
    __m512i weights[Strips];
#pragma GCC unroll 16
    for (int s = 0; s < Strips; ++s) {
      const uint8_t* p = w + s * strip_bytes + q * 64;
      weights[s] = _mm512_loadu_si512(p);
      if (Rows <= 8) _mm_prefetch(reinterpret_cast<const char*>(p + kAheadEach), _MM_HINT_T0);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const __m512i values = broadcast4(x + r * k + q * 4);
#pragma GCC unroll 16
      for (int s = 0; s < Strips; ++s) acc[r][s] = _mm512_dpbusd_epi32(acc[r][s], weights[s], values);
    }
  }
#pragma GCC unroll 16
  for (int s = 0; s < Strips; ++s) {
    int32_t sums[Rows * 16];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) _mm512_storeu_si512(sums + r * 16, acc[r][s]);
    finish_rows(job, row, Rows, strip + s, sums);
  }
}

template <int Rows, int Strips>
STATEPOOL_INLINE void pass(const GemmJob& job, int64_t row, int64_t strip, int64_t last) {
  for (; strip + Strips <= last; strip += Strips) tile<Rows, Strips>(job, row, strip);
  for (; strip < last; ++strip) tile<Rows, 1>(job, row, strip);
}

#if defined(STATEPOOL_ISA_amx)

// Tiles hold 16 rows of 64 bytes: 0 to 3 the sums of two row tiles x two strips, 4 and 5 activations, 6 and 7 weights.
// A strip is stored as weight tiles already.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

constexpr int kTileRows = 16, kBlockRows = 2 * kTileRows;
constexpr int kFewRows = 8;  // up to here the weights' way from memory decides, and VPDPBUSD keeps up with it

void configure(int rows) {
  const int top = rows < kTileRows ? rows : kTileRows, bottom = rows - top;
  const int rows_of[8] = {top, top, bottom, bottom, top, bottom, kTileRows, kTileRows};
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<uint8_t>(rows_of[i]);
    config.bytes[i] = rows_of[i] > 0 ? 64 : 0;
  }
  // Not _tile_loadconfig: GCC 12 declares that it reads 8 bytes, and drops the stores to the other 56.
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

template <bool Bottom, bool Pair>
STATEPOOL_NOINLINE void block(const GemmJob& job, int64_t row, int rows, int64_t strip) {
  const int64_t k = job.k;
  const int8_t* x = job.x8 + row * k;
  const uint8_t* w = job.packed + strip * job.strip_bytes;
  _tile_zero(0);
  if constexpr (Pair) _tile_zero(1);
  if constexpr (Bottom) _tile_zero(2);
  if constexpr (Bottom && Pair) _tile_zero(3);
  for (int64_t at = 0; at < k; at += 64) {
    _tile_loadd(4, x + at, k);
    _tile_loadd(6, w + at * 16, 64);
    _tile_dpbsud(0, 4, 6);
    if constexpr (Pair) {
      _tile_loadd(7, w + job.strip_bytes + at * 16, 64);
      _tile_dpbsud(1, 4, 7);
    }
    if constexpr (Bottom) {
      _tile_loadd(5, x + kTileRows * k + at, k);
      _tile_dpbsud(2, 5, 6);
      if constexpr (Pair) _tile_dpbsud(3, 5, 7);
    }
  }
  alignas(64) int32_t sums[2][kBlockRows * 16];
  _tile_stored(0, sums[0], 64);
  if constexpr (Pair) _tile_stored(1, sums[1], 64);
  if constexpr (Bottom) _tile_stored(2, sums[0] + kTileRows * 16, 64);
  if constexpr (Bottom && Pair) _tile_stored(3, sums[1] + kTileRows * 16, 64);
  finish_rows(job, row, rows, strip, sums[0]);
  if constexpr (Pair) finish_rows(job, row, rows, strip + 1, sums[1]);
}

template <bool Bottom>
void block_of_strips(const GemmJob& job, int64_t row, int rows, int64_t strip, int64_t last) {
  for (; strip + 2 <= last; strip += 2) block<Bottom, true>(job, row, rows, strip);
  if (strip < last) block<Bottom, false>(job, row, rows, strip);
}

void run_tiles(const GemmJob& job, int64_t first, int64_t last) {
  int configured = 0;
  // As below: a few strips stay in L2 while all rows pass over them.
  for (int64_t begin = first; begin < last; begin += 4) {
    const int64_t end = begin + 4 < last ? begin + 4 : last;
    for (int64_t row = 0; row < job.rows; row += kBlockRows) {
      const int rows = static_cast<int>(job.rows - row < kBlockRows ? job.rows - row : kBlockRows);
      if (rows != configured) configure(configured = rows);
      if (rows > kTileRows) {
        block_of_strips<true>(job, row, rows, begin, end);
      } else {
        block_of_strips<false>(job, row, rows, begin, end);
      }
    }
  }
  _tile_release();  // or every switch of this thread would save the tiles
}

#endif

void run(const GemmJob& job, int64_t first, int64_t last) {
#if defined(STATEPOOL_ISA_amx)
  if (job.rows > kFewRows) return run_tiles(job, first, last);
#endif
  // Four strips (64 outputs) stay in L2 while all rows pass over them; with few rows they are four streams from memory.
  for (int64_t begin = first; begin < last; begin += 4) {
    const int64_t end = begin + 4 < last ? begin + 4 : last;
    int64_t row = 0;
    for (; row + 12 <= job.rows; row += 12) pass<12, 2>(job, row, begin, end);
    for (; row + 8 <= job.rows; row += 8) pass<8, 2>(job, row, begin, end);
    switch (job.rows - row) {
      case 1: pass<1, 4>(job, row, begin, end); break;
      case 2: pass<2, 4>(job, row, begin, end); break;
      case 3: pass<3, 4>(job, row, begin, end); break;
      case 4: pass<4, 4>(job, row, begin, end); break;
      case 5: pass<5, 2>(job, row, begin, end); break;
      case 6: pass<6, 2>(job, row, begin, end); break;
      case 7: pass<7, 2>(job, row, begin, end); break;
      default: break;
    }
  }
}

#elif defined(STATEPOOL_ISA_avx2)

STATEPOOL_INLINE __m256i broadcast2(const int16_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}
STATEPOOL_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

template <int Rows>
STATEPOOL_INLINE void multiply(__m256i (*acc)[2], const int16_t* x, int64_t k, __m256i low, __m256i high) {
  // The empty asm statements pin registers: without them the compiler reads the weights again for every row and
  // reorders the adds until half the accumulators live on the stack.
  __asm__("" : "+x"(low), "+x"(high));
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    const __m256i values = broadcast2(x + r * k);
    acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(values, low));
    acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(values, high));
    __asm__("" : "+x"(acc[r][0]), "+x"(acc[r][1]));
  }
}

// Widened: the strip's weights come as 16-bit words from `panel` (see widen) instead of bytes.
template <int Rows, bool Widened>
STATEPOOL_NOINLINE void tile(const GemmJob& job, int64_t row, int64_t strip, const uint8_t* panel) {
  __m256i acc[Rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
  const uint8_t* w = Widened ? panel : job.packed + strip * job.strip_bytes;
  const int64_t k = job.k;
  const int16_t* x = job.x16 + row * k;
  const __m256i even = _mm256_set1_epi16(0xff);
  for (int64_t q = 0; q < k / 4; ++q, x += 4) {
    if (Widened) {
      multiply<Rows>(acc, x, k, load256(w), load256(w + 32));
      multiply<Rows>(acc, x + 2, k, load256(w + 64), load256(w + 96));
      w += 128;
    } else {
      const __m256i a = load256(w), b = load256(w + 32);
      _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
      multiply<Rows>(acc, x, k, _mm256_and_si256(a, even), _mm256_and_si256(b, even));
      multiply<Rows>(acc, x + 2, k, _mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
      w += 64;
    }
  }
  int32_t sums[Rows * 16];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * 16), acc[r][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * 16 + 8), acc[r][1]);
  }
  finish_rows(job, row, Rows, strip, sums);
}

// Few rows: Strips streams of weights at once ask more of the memory than one, and share the activations.
template <int Rows, int Strips>
STATEPOOL_NOINLINE void streams(const GemmJob& job, int64_t strip) {
  __m256i acc[Strips][Rows][2];
#pragma GCC unroll 16
  for (int s = 0; s < Strips; ++s)
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) acc[s][r][0] = acc[s][r][1] = _mm256_setzero_si256();
  const uint8_t* w = job.packed + strip * job.strip_bytes;
  const int64_t k = job.k, strip_bytes = job.strip_bytes;
  const int16_t* x = job.x16;
  const __m256i even = _mm256_set1_epi16(0xff);
  for (int64_t q = 0; q < k / 4; ++q, x += 4, w += 64) {
#pragma GCC unroll 16
    for (int s = 0; s < Strips; ++s) {
      const __m256i a = load256(w + s * strip_bytes), b = load256(w + s * strip_bytes + 32);
      _mm_prefetch(reinterpret_cast<const char*>(w + s * strip_bytes + kAheadEach), _MM_HINT_T0);
      multiply<Rows>(acc[s], x, k, _mm256_and_si256(a, even), _mm256_and_si256(b, even));
      multiply<Rows>(acc[s], x + 2, k, _mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
    }
  }
  for (int s = 0; s < Strips; ++s) {
    int32_t sums[Rows * 16];
    for (int r = 0; r < Rows; ++r) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * 16), acc[s][r][0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * 16 + 8), acc[s][r][1]);
    }
    finish_rows(job, 0, Rows, strip + s, sums);
  }
}

void widen(const uint8_t* w, int64_t k, uint8_t* panel) {
  const __m256i even = _mm256_set1_epi16(0xff);
  for (int64_t q = 0; q < k / 4; ++q, w += 64, panel += 128) {
    const __m256i a = load256(w), b = load256(w + 32);
    _mm256_store_si256(reinterpret_cast<__m256i*>(panel), _mm256_and_si256(a, even));
    _mm256_store_si256(reinterpret_cast<__m256i*>(panel + 32), _mm256_and_si256(b, even));
    _mm256_store_si256(reinterpret_cast<__m256i*>(panel + 64), _mm256_srli_epi16(a, 8));
    _mm256_store_si256(reinterpret_cast<__m256i*>(panel + 96), _mm256_srli_epi16(b, 8));
  }
}

template <bool Widened>
void rows_of_strip(const GemmJob& job, int64_t row, int64_t last_row, int64_t strip, const uint8_t* panel) {
  if (Widened)
    for (; row + 6 <= last_row; row += 6) tile<6, true>(job, row, strip, panel);
  for (; row + 4 <= last_row; row += 4) tile<4, Widened>(job, row, strip, panel);
  switch (last_row - row) {
    case 1: tile<1, Widened>(job, row, strip, panel); break;
    case 2: tile<2, Widened>(job, row, strip, panel); break;
    case 3: tile<3, Widened>(job, row, strip, panel); break;
    default: break;
  }
}

void run(const GemmJob& job, int64_t first, int64_t last) {
  if (job.rows == 1)
    for (; first + 4 <= last; first += 4) streams<1, 4>(job, first);
  if (job.rows == 2)
    for (; first + 2 <= last; first += 2) streams<2, 2>(job, first);
  if (job.rows <= 8) {
    for (int64_t strip = first; strip < last; ++strip) rows_of_strip<false>(job, 0, job.rows, strip, nullptr);
    return;
  }
  uint8_t* panel = static_cast<uint8_t*>(job.scratch(job.k * 32));
  // The widened panel of a strip is made once per block of rows small enough to stay in L2 beside it.
  int64_t block = (256 * 1024) / (job.k * 2) / 6 * 6;
  if (block < 24) block = 24;
  for (int64_t row = 0; row < job.rows; row += block) {
    const int64_t last_row = row + block < job.rows ? row + block : job.rows;
    for (int64_t strip = first; strip < last; ++strip) {
      widen(job.packed + strip * job.strip_bytes, job.k, panel);
      rows_of_strip<true>(job, row, last_row, strip, panel);
    }
  }
}

#else

void run(const GemmJob& job, int64_t first, int64_t last) {
  for (int64_t strip = first; strip < last; ++strip) {
    const uint8_t* w = job.packed + strip * job.strip_bytes;
    for (int64_t row = 0; row < job.rows; ++row) {
      const int8_t* x = job.x8 + row * job.k;
      int32_t sums[16] = {};
      for (int64_t q = 0; q < job.k / 4; ++q)
        for (int i = 0; i < 16; ++i)
          for (int j = 0; j < 4; ++j) sums[i] += static_cast<int32_t>(w[q * 64 + i * 4 + j]) * x[q * 4 + j];
      finish_rows(job, row, 1, strip, sums);
    }
  }
}

#endif

}  // namespace

extern const GemmKernel gemm_int8;
const GemmKernel gemm_int8 = {&run};

}  // namespace statepool::STATEPOOL_NS
