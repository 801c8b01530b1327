// Kernels of the wave index: clusters of keys (RetroInfer), scanned by centroid, read whole or estimated.
//
// Centroids lie in tiles of sixteen, [tile][head_dim][16], like the keys of a KV page. Rows lie cluster by cluster, its
// keys one after the other and then its values, so that a cluster is one stretch. T is bf16 bits (uint16_t) or float.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace statepool {

constexpr int kRowsAhead = 32;  // rows of a list between what is read and what is fetched

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
  // What a rank sorts by, 0 for an empty cluster.
  void (*keys_of)(const float* rank, const float* log_size, int64_t count, uint32_t* keys);
  // The k-th largest of n keys (1 <= k <= n); `above` becomes how many are larger. Room for n + 16 keys in `room`.
  uint32_t (*kth_largest)(const uint32_t* keys, int64_t n, int64_t k, uint32_t* room, int64_t* above);
  // The places of all keys that are not below `least`, in order, and how many; room for n + 16 in `at`.
  int64_t (*at_least)(const uint32_t* keys, int64_t n, uint32_t least, int32_t* at);
  // scores[v][i] = scale * q[v] . key i. Keys lie anywhere; the list has kRowsAhead more addresses, which are fetched only.
  void (*dot_bf16)(const float* q, int vectors, const void* const* keys, int64_t count, int head_dim, float scale,
                   float* scores, int64_t stride);
  void (*dot_float)(const float* q, int vectors, const void* const* keys, int64_t count, int head_dim, float scale,
                    float* scores, int64_t stride);
  // The same for keys that follow each other.
  void (*dot_stretch)(const float* q, int vectors, const float* keys, int64_t count, int head_dim, float scale,
                      float* scores, int64_t stride);
  // p = exp(s - m) in place, m the largest of `count`; returns the sum in a fixed order. Lanes past count are not read.
  float (*soften)(float* scores, int64_t count, float* m);
  // acc[v] += sum of p[v][i] * row i, in order; the list as above.
  void (*weigh_bf16)(const float* p, int64_t stride, int vectors, const void* const* rows, int64_t count, int head_dim,
                     float* acc);
  void (*weigh_float)(const float* p, int64_t stride, int vectors, const void* const* rows, int64_t count, int head_dim,
                      float* acc);
};

}  // namespace statepool

STATEPOOL_KERNELS(WaveKernels, wave_kernels)
