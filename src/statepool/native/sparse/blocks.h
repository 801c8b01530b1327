// Kernels of block attention over whole documents (MoBA, block-major): many queries pass over one block of keys.
//
// Keys lie in tiles of sixteen, [tile][head_dim][16], values in rows. Each score and each weighted sum is one chain of
// fused multiply-adds of its own, so a query's bits do not depend on the queries beside it.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace statepool {

struct BlockKernels {
  // scores[i][c] = q[i] . key c, for tile_count * 16 keys; `step` between rows of q, `stride` between those of scores.
  void (*score)(const float* q, int64_t step, int64_t rows, const float* tiles, int64_t tile_count, int head_dim,
                float* scores, int64_t stride);
  // acc[i] += sum over c < count of p[i * row_step + c * step] * value c, c ascending.
  void (*weigh)(const float* p, int64_t row_step, int64_t step, int64_t rows, const float* values, int64_t count,
                int head_dim, float* acc);
  // Folds a later part of each row (m2, l2, acc2) into (m, l, out[i]), as attention's fold does; out[i] may hold anything
  // while m[i] is -inf.
  void (*fold)(float* m, float* l, float* const* out, const float* m2, const float* l2, const float* acc2, int64_t rows,
               int head_dim);
  // weights = exp(s - lse) in place, and slopes = weights * (slopes - spread): one row of `count`, a multiple of 16.
  void (*slope)(float* scores, float* slopes, int64_t count, float lse, float spread);
  // The `wanted` largest of `count` scores, in falling order, the first of equals; not a number is the least. Scores are
  // room for a multiple of sixteen and are changed.
  void (*best)(float* scores, int64_t count, int64_t wanted, int32_t* found);
};

}  // namespace statepool

STATEPOOL_KERNELS(BlockKernels, block_kernels)
