// bf16 and fp32 weights: one accumulator per output, fma over k ascending.
#include "gemm_finish.h"

namespace statepool::STATEPOOL_NS {
namespace {

struct Bf16 {
  static constexpr int64_t kBytes = 32;  // of 16 weights
  static STATEPOOL_INLINE F16 weights(const uint8_t* p) { return load_bf16(reinterpret_cast<const uint16_t*>(p)); }
};
struct Fp32 {
  static constexpr int64_t kBytes = 64;
  static STATEPOOL_INLINE F16 weights(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};

// Rows x Strips outputs kept in registers over the whole of k.
template <class W, int Rows, int Strips>
STATEPOOL_NOINLINE void tile(const GemmJob& job, int64_t row, int64_t strip) {
  F16 acc[Rows][Strips];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
    for (int s = 0; s < Strips; ++s) acc[r][s] = zero();
  const float* x = job.x + row * job.k;
  const uint8_t* w = job.packed + strip * job.strip_bytes;
  const int64_t k_count = job.k, strip_bytes = job.strip_bytes;
  for (int64_t k = 0; k < k_count; ++k) {
#pragma GCC unroll 16
    for (int s = 0; s < Strips; ++s) {
      const F16 weights = W::weights(w + s * strip_bytes + k * W::kBytes);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) acc[r][s] = fma(set1(x[r * k_count + k]), weights, acc[r][s]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
    for (int s = 0; s < Strips; ++s) finish(job, row + r, strip + s, acc[r][s]);
}

template <class W, int Rows, int Strips>
void strips(const GemmJob& job, int64_t row, int64_t strip, int64_t last) {
  for (; strip + Strips <= last; strip += Strips) tile<W, Rows, Strips>(job, row, strip);
  if (Strips > 1)
    for (; strip < last; ++strip) tile<W, Rows, 1>(job, row, strip);
}

#if defined(STATEPOOL_ISA_avx512)
constexpr int kRows = 6, kWide = 4;  // 24 of 32 registers accumulate
#else
constexpr int kRows = 6, kWide = 1;  // 12 of 16 registers accumulate
#endif

template <class W>
void run(const GemmJob& job, int64_t first, int64_t last) {
  // Few rows: the weights stream once from memory. Many: a group of strips stays in cache while the rows pass.
  for (int64_t begin = first; begin < last; begin += 4) {
    const int64_t end = begin + 4 < last ? begin + 4 : last;
    int64_t row = 0;
    for (; row + kRows <= job.rows; row += kRows) strips<W, kRows, kWide>(job, row, begin, end);
    switch (job.rows - row) {
      case 1: strips<W, 1, 4>(job, row, begin, end); break;
      case 2: strips<W, 2, 2>(job, row, begin, end); break;
      case 3: strips<W, 3, 2>(job, row, begin, end); break;
      case 4: strips<W, 4, 1>(job, row, begin, end); break;
      case 5: strips<W, 5, 1>(job, row, begin, end); break;
      default: break;
    }
  }
}

}  // namespace

extern const GemmKernel gemm_bf16, gemm_fp32;
const GemmKernel gemm_bf16 = {&run<Bf16>};
const GemmKernel gemm_fp32 = {&run<Fp32>};

}  // namespace statepool::STATEPOOL_NS
