// Kernels of the wave index: clusters of keys (RetroInfer), scanned by centroid, read whole or estimated.
//
// Centroids lie in tiles of sixteen, [tile][head_dim][16], like the keys of a KV page. Rows lie cluster by cluster, its
// keys one after the other and then its values, so that a cluster is one stretch. T is bf16 bits (uint16_t) or float.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace statepool {

constexpr int kScatterAhead = 16;  // rows of `gather` between what is read and what is fetched

struct WaveKernels {
  // best[i] = the first c with the largest y[i] . centroid[c] + bias[c]; float tiles.
  void (*assign)(const float* y, int64_t rows, const float* tiles, const float* bias, int64_t tile_count, int head_dim,
                 int32_t* best);
  // best[i] = the first of the largest of scores[i][count], count a multiple of 16.
  void (*best_of)(const float* scores, int64_t rows, int64_t count, int32_t* best);
  // scores[v][c] = scale * q[v] . tile, for tile_count * 16 centroids; `stride` between v.
  void (*scan_bf16)(const float* q, int vectors, const void* tiles, int64_t tile_count, int head_dim, float scale,
                    float* scores, int64_t stride);
  void (*scan_float)(const float* q, int vectors, const void* tiles, int64_t tile_count, int head_dim, float scale,
                     float* scores, int64_t stride);
  // rank[c] += exp(s[c] - max s) / sum exp: one vector's softmax over `count` (a multiple of 16) scores.
  void (*add_softmax)(const float* scores, int64_t count, float* weights, float* rank);
  // s[c] += what a spread of the scores with variance v[c] adds to the logarithm of their mean exponential: half of v, but
  // among few keys no more than the largest of them lets expect. count a multiple of 16.
  void (*add_variance)(const float* v, const float* log_size, float factor, int64_t count, float* scores);
  // out = s + log_size, or s where not `mass`; -inf for empty clusters either way.
  void (*add_size)(const float* scores, const float* log_size, bool mass, int64_t count, float* out);
  // scores[v][i] = scale * q[v] . key i. The keys at `ahead` are fetched meanwhile.
  void (*dot_bf16)(const float* q, int vectors, const void* keys, const void* ahead, int64_t count, int head_dim,
                   float scale, float* scores, int64_t stride);
  void (*dot_float)(const float* q, int vectors, const void* keys, const void* ahead, int64_t count, int head_dim,
                    float scale, float* scores, int64_t stride);
  // p = exp(s - m) in place, m the largest of `count`; returns the sum in a fixed order. Lanes past count are not read.
  float (*soften)(float* scores, int64_t count, float* m);
  // acc[v] += sum of p[v][i] * row i. The rows at `ahead` are fetched meanwhile.
  void (*weigh_bf16)(const float* p, int64_t stride, int vectors, const void* rows, const void* ahead,
                     int64_t count, int head_dim, float* acc);
  void (*weigh_float)(const float* p, int64_t stride, int vectors, const void* rows, const void* ahead,
                      int64_t count, int head_dim, float* acc);
  // The same for rows that lie anywhere; `rows` has kScatterAhead more addresses, whose rows are fetched only.
  void (*gather_bf16)(const float* p, int64_t stride, int vectors, const void* const* rows, int64_t count, int head_dim,
                      float* acc);
  void (*gather_float)(const float* p, int64_t stride, int vectors, const void* const* rows, int64_t count, int head_dim,
                       float* acc);
};

}  // namespace statepool

STATEPOOL_KERNELS(WaveKernels, wave_kernels)
