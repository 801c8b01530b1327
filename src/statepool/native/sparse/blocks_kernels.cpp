#include "../simd.h"
#include "blocks.h"

namespace statepool::STATEPOOL_NS {
namespace {

const float kInfinity = __builtin_inff();

// Rows and vectors of sixteen that accumulate in registers.
#if defined(STATEPOOL_ISA_avx512)
constexpr int kRows = 6, kWide = 4;
#else
constexpr int kRows = 2, kWide = 2;
#endif
// Keys whose tiles (or values) stay in the first cache while all rows pass.
constexpr int64_t kChunk = 4;

template <int N, int W>
STATEPOOL_NOINLINE void score_tile(const float* q, int64_t step, const float* tiles, int head_dim, float* scores,
                                   int64_t stride) {
  F16 sum[N][W];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) sum[i][w] = zero();
  const int64_t tile = static_cast<int64_t>(head_dim) * 16;
  for (int d = 0; d < head_dim; ++d) {
    F16 key[W];
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) key[w] = load(tiles + w * tile + d * 16);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      const F16 x = set1(q[i * step + d]);
#pragma GCC unroll 16
      for (int w = 0; w < W; ++w) sum[i][w] = fma(x, key[w], sum[i][w]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) store(scores + i * stride + w * 16, sum[i][w]);
}

template <int N>
STATEPOOL_INLINE void score_rows(const float* q, int64_t step, const float* tiles, int64_t count, int head_dim,
                                 float* scores, int64_t stride) {
  int64_t t = 0;
  for (; t + kWide <= count; t += kWide)
    score_tile<N, kWide>(q, step, tiles + t * head_dim * 16, head_dim, scores + t * 16, stride);
  for (; t < count; ++t) score_tile<N, 1>(q, step, tiles + t * head_dim * 16, head_dim, scores + t * 16, stride);
}

void score(const float* q, int64_t step, int64_t rows, const float* tiles, int64_t tile_count, int head_dim, float* scores,
           int64_t stride) {
  for (int64_t t = 0; t < tile_count; t += kChunk) {
    const int64_t count = tile_count - t < kChunk ? tile_count - t : kChunk;
    const float* at = tiles + t * head_dim * 16;
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows)
      score_rows<kRows>(q + row * step, step, at, count, head_dim, scores + row * stride + t * 16, stride);
    for (; row < rows; ++row)
      score_rows<1>(q + row * step, step, at, count, head_dim, scores + row * stride + t * 16, stride);
  }
}

template <int N, int W>
STATEPOOL_NOINLINE void weigh_tile(const float* p, int64_t row_step, int64_t step, const float* values, int64_t count,
                                   int head_dim, float* acc) {
  F16 sum[N][W];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) sum[i][w] = load(acc + i * head_dim + w * 16);
  for (int64_t c = 0; c < count; ++c, p += step, values += head_dim) {
    F16 value[W];
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) value[w] = load(values + w * 16);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      const F16 x = set1(p[i * row_step]);
#pragma GCC unroll 16
      for (int w = 0; w < W; ++w) sum[i][w] = fma(x, value[w], sum[i][w]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) store(acc + i * head_dim + w * 16, sum[i][w]);
}

template <int N>
STATEPOOL_INLINE void weigh_rows(const float* p, int64_t row_step, int64_t step, const float* values, int64_t count,
                                 int head_dim, int width, float* acc) {
  if (width == kWide)
    weigh_tile<N, kWide>(p, row_step, step, values, count, head_dim, acc);
  else
    weigh_tile<N, 1>(p, row_step, step, values, count, head_dim, acc);
}

void weigh(const float* p, int64_t row_step, int64_t step, int64_t rows, const float* values, int64_t count, int head_dim,
           float* acc) {
  for (int64_t c = 0; c < count; c += 16 * kChunk) {
    const int64_t some = count - c < 16 * kChunk ? count - c : 16 * kChunk;
    const float *at = values + c * head_dim, *weights = p + c * step;
    for (int d = 0, width = kWide; d < head_dim; d += 16 * width) {
      if (d + 16 * width > head_dim) width = 1;
      int64_t row = 0;
      for (; row + kRows <= rows; row += kRows)
        weigh_rows<kRows>(weights + row * row_step, row_step, step, at + d, some, head_dim, width, acc + row * head_dim + d);
      for (; row < rows; ++row)
        weigh_rows<1>(weights + row * row_step, row_step, step, at + d, some, head_dim, width, acc + row * head_dim + d);
    }
  }
}

void fold(float* m, float* l, float* const* out, const float* m2, const float* l2, const float* acc2, int64_t rows,
          int head_dim) {
  for (int64_t first = 0; first < rows; first += 16) {
    const int count = static_cast<int>(rows - first < 16 ? rows - first : 16);
    float tops[16], olds[16], news[16];
    for (int i = 0; i < 16; ++i) {
      const float a = i < count ? m[first + i] : 0.0f, b = i < count ? m2[first + i] : 0.0f;
      tops[i] = a > b ? a : b;
      olds[i] = a - tops[i];
      news[i] = b - tops[i];
    }
    store(olds, exp16(load(olds)));
    store(news, exp16(load(news)));
    for (int i = 0; i < count; ++i) {
      const int64_t row = first + i;
      const F16 e1 = set1(olds[i]), e2 = set1(news[i]);
      const float* add2 = acc2 + row * head_dim;
      for (int d = 0; d < head_dim; d += 16) {
        const F16 more = mul(load(add2 + d), e2);
        store(out[row] + d, olds[i] == 0.0f ? more : fma(load(out[row] + d), e1, more));
      }
      l[row] = l[row] * olds[i] + l2[row] * news[i];
      m[row] = tops[i];
    }
  }
}

void slope(float* scores, float* slopes, int64_t count, float lse, float spread) {
  for (int64_t c = 0; c < count; c += 16) {
    const F16 weight = exp16(sub(load(scores + c), set1(lse)));
    store(scores + c, weight);
    store(slopes + c, mul(weight, sub(load(slopes + c), set1(spread))));
  }
}

void best(float* scores, int64_t count, int64_t wanted, int32_t* found) {
  const int64_t all = (count + 15) / 16 * 16;
  for (int64_t c = count; c < all; ++c) scores[c] = -kInfinity;
  for (int64_t c = 0; c < count; ++c) scores[c] = scores[c] == scores[c] ? scores[c] : -kInfinity;
  int64_t held = 0;
  const auto enter = [&](int64_t c) {
    int64_t at = held < wanted ? held++ : wanted - 1;
    for (; at > 0 && scores[found[at - 1]] < scores[c]; --at) found[at] = found[at - 1];
    found[at] = static_cast<int32_t>(c);
  };
  int64_t c = 0;
  for (; c < wanted; ++c) enter(c);
  for (c = c / 16 * 16; c < all; c += 16) {
    const float least = scores[found[wanted - 1]];
    // Sixteen at a time, without a branch between them. Those that entered first are no larger than themselves.
    int hits = 0;
    for (int lane = 0; lane < 16; ++lane) hits |= scores[c + lane] > least;
    for (int64_t i = c < wanted ? wanted : c; hits && i < c + 16; ++i)
      if (scores[i] > scores[found[wanted - 1]]) enter(i);
  }
}

}  // namespace

extern const BlockKernels block_kernels;
const BlockKernels block_kernels = {&score, &weigh, &fold, &slope, &best};

}  // namespace statepool::STATEPOOL_NS
