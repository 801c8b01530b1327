// One segment's clusters, made once and never changed (RetroInfer 4.1).
#pragma once

#include <cstdint>

namespace statepool {

struct WaveShape {
  int64_t heads, tokens, head_dim;
  int64_t pinned;    // first rows, in no cluster and always read
  int64_t clusters;  // wanted
  int64_t padded;    // clusters rounded up to 16; those beyond are empty
  int64_t iterations;
};

// Outputs, per head; T is bf16 bits or float as the keys are.
struct WaveArrays {
  void* centroids;  // T [heads][padded / 16][head_dim][16]
  void* variances;  // like centroids, or null
  void* means;      // T [heads][padded][head_dim], of the values
  void* rows;       // T [heads][2 * tokens][head_dim], pinned first, then cluster by cluster: its keys, its values
  int32_t* order;   // [heads][tokens]: which token a row is
  int32_t* offsets;    // [heads][padded + 1]: first row of each cluster
  float* log_size;     // [heads][padded], -inf for an empty cluster
  float* spread;       // mean squared distance from the centroid, per dimension
  float* reach;        // largest distance of a key from the stored centroid, rounded up
  float* value_reach;  // largest distance of a value from the stored mean, rounded up
};

// `labels` [heads][tokens - pinned]: the cluster of each token, as an earlier build found it; null looks for it.
void wave_build(const void* keys, const void* values, bool bf16, const WaveShape& shape, const uint16_t* labels,
                const WaveArrays& out);

}  // namespace statepool
