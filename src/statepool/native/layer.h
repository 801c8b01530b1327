// A decoder layer but for its attention: what comes before it and what comes after it, one call each.
#pragma once

#include <cstdint>

#include "arrays.h"
#include "gemm.h"

namespace statepool {

struct LayerShape {
  int64_t hidden, heads, kv_heads, head_dim, inter;
  float eps;
};

// The four matrices of a layer, borrowed: they must outlive it.
struct LayerMatrices {
  const Linear &qkv, &o, &gate_up, &down;
};

class DecoderLayer {
 public:
  // Norms are copied; q_norm and k_norm [head_dim] may be null. Raises std::invalid_argument where a matrix does not
  // fit the shape.
  DecoderLayer(const LayerMatrices& matrices, const LayerShape& shape, const float* input_norm, const float* post_norm,
               const float* q_norm, const float* k_norm);

  // x [rows][hidden] to q [rows][heads * head_dim]; keys and values go to their slots of the pool.
  void before_attention(const float* x, int64_t rows, const float* cos, const float* sin, const int32_t* positions,
                        const int64_t* slots, const KvPool& pool, int64_t layer, float* q) const;
  // The same in two halves, for attention that runs elsewhere: the queries can be on their way while keys and values are
  // computed. kv [rows][2][kv_heads][head_dim], bf16 bits or float, as they would lie in the pool.
  void queries(const float* x, int64_t rows, const float* cos, const float* sin, const int32_t* positions, float* q) const;
  void keys_values(const float* x, int64_t rows, const float* cos, const float* sin, const int32_t* positions, bool bf16,
                   void* kv) const;
  // x += o(attn), then x += down(silu(gate) * up) of the normed x.
  void after_attention(float* x, const float* attn, int64_t rows) const;

  const LayerShape& shape() const { return shape_; }

 private:
  // Columns first .. first + count of the normed rows' product with qkv, at their places in rows of all columns.
  float* project(const float* x, int64_t rows, int64_t first, int64_t count) const;

  LayerMatrices matrices_;
  LayerShape shape_;
  Buffer<float> input_norm_, post_norm_, q_norm_, k_norm_;
};

// logits [rows][linear.n()] = linear(rms_norm(x)).
void head(const float* x, int64_t rows, const float* norm, float eps, const Linear& linear, float* logits);

}  // namespace statepool
