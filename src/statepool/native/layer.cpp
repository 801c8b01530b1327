#include "layer.h"

#include <cstring>
#include <stdexcept>

#include "norm_rope.h"
#include "pool.h"

namespace statepool {
namespace {

// Scratch of a step, kept by the calling thread and shared by all layers: it only grows.
struct Workspace {
  QuantRows quantized;
  Buffer<float> rows, qkv, gate_up;
};

Workspace& workspace() {
  static thread_local Workspace one;
  return one;
}

float* row_scratch(int64_t columns) {
  static thread_local Buffer<float> row;
  row.reserve(static_cast<size_t>(columns));
  return row.data();
}

int64_t grain(int64_t columns) { return columns >= 8192 ? 1 : 8192 / columns; }

// out = linear(rows made by make(row, float* to)): quantised one by one as they are made, where the matrix wants that.
template <class Make>
void make_and_multiply(const Linear& linear, int64_t rows, Make&& make, Output out, int64_t first = 0, int64_t count = -1) {
  Workspace& space = workspace();
  const int64_t columns = linear.k();
  if (linear.quantized()) {
    space.quantized.resize(rows, columns);
    parallel_for(rows, grain(columns), [&](int64_t begin, int64_t end) {
      float* scratch = row_scratch(columns);
      for (int64_t row = begin; row < end; ++row) {
        make(row, scratch);
        quantize_row(scratch, columns, space.quantized, row);
      }
    });
    linear.run(space.quantized, out, first, count);
  } else {
    space.rows.reserve(static_cast<size_t>(rows * columns));
    float* data = space.rows.data();
    parallel_for(rows, grain(columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) make(row, data + row * columns);
    });
    linear.run(data, rows, out, first, count);
  }
}

void copy(const float* from, int64_t n, Buffer<float>& to) {
  if (!from) return;
  to.reserve(static_cast<size_t>(n));
  std::memcpy(to.data(), from, sizeof(float) * static_cast<size_t>(n));
}

}  // namespace

DecoderLayer::DecoderLayer(const LayerMatrices& matrices, const LayerShape& shape, const float* input_norm,
                           const float* post_norm, const float* q_norm, const float* k_norm)
    : matrices_(matrices), shape_(shape) {
  require(shape.hidden > 0, "input_norm: is empty");
  require(shape.head_dim > 0 && shape.head_dim % 16 == 0, "head_dim: must be a multiple of 16");
  require(shape.kv_heads > 0 && shape.heads > 0 && shape.heads % shape.kv_heads == 0,
          "heads: must be a multiple of kv_heads");
  require(matrices.qkv.k() == shape.hidden, "qkv: k must be the hidden size");
  require(matrices.qkv.n() == (shape.heads + 2 * shape.kv_heads) * shape.head_dim,
          "qkv: n must be (heads + 2 * kv_heads) * head_dim");
  require(matrices.o.k() == shape.heads * shape.head_dim, "o: k must be heads * head_dim");
  require(matrices.o.n() == shape.hidden, "o: n must be the hidden size");
  require(matrices.gate_up.k() == shape.hidden, "gate_up: k must be the hidden size");
  require(matrices.gate_up.n() == 2 * shape.inter, "gate_up: n must be twice the k of down");
  require(matrices.down.n() == shape.hidden, "down: n must be the hidden size");
  copy(input_norm, shape.hidden, input_norm_);
  copy(post_norm, shape.hidden, post_norm_);
  copy(q_norm, shape.head_dim, q_norm_);
  copy(k_norm, shape.head_dim, k_norm_);
}

float* DecoderLayer::project(const float* x, int64_t rows, int64_t first, int64_t count) const {
  const int64_t hidden = shape_.hidden, width = matrices_.qkv.n();
  Buffer<float>& buffer = workspace().qkv;
  buffer.reserve(static_cast<size_t>(rows * width));
  make_and_multiply(
      matrices_.qkv, rows,
      [&](int64_t row, float* to) {
        norm_rope_kernels().rms_norm(x + row * hidden, input_norm_.data(), hidden, shape_.eps, to);
      },
      Output{buffer.data(), width}, first, count);
  return buffer.data();
}

void DecoderLayer::queries(const float* x, int64_t rows, const float* cos, const float* sin, const int32_t* positions,
                           float* q) const {
  const auto& ops = norm_rope_kernels();
  const int64_t hd = shape_.head_dim, heads = shape_.heads, width = matrices_.qkv.n();
  float* qkv = project(x, rows, 0, heads * hd);
  parallel_for(rows, grain(heads * hd), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = positions[row] * (hd / 2);
      for (int64_t h = 0; h < heads; ++h) {
        float* one = qkv + row * width + h * hd;
        if (q_norm_.data()) ops.rms_norm(one, q_norm_.data(), hd, shape_.eps, one);
        ops.rope(one, cos + at, sin + at, hd, q + (row * heads + h) * hd);
      }
    }
  });
}

void DecoderLayer::keys_values(const float* x, int64_t rows, const float* cos, const float* sin, const int32_t* positions,
                               bool bf16, void* kv) const {
  const auto& ops = norm_rope_kernels();
  const int64_t hd = shape_.head_dim, kv_heads = shape_.kv_heads, width = matrices_.qkv.n();
  const int64_t first = shape_.heads * hd, row_bytes = 2 * kv_heads * hd * (bf16 ? 2 : 4);
  float* qkv = project(x, rows, first, 2 * kv_heads * hd);
  parallel_for(rows, grain(2 * kv_heads * hd), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = positions[row] * (hd / 2);
      float* keys = qkv + row * width + first;
      const float* values = keys + kv_heads * hd;
      char* to = static_cast<char*>(kv) + row * row_bytes;
      for (int64_t h = 0; h < kv_heads; ++h) {
        float* one = keys + h * hd;
        if (k_norm_.data()) ops.rms_norm(one, k_norm_.data(), hd, shape_.eps, one);
        ops.rope(one, cos + at, sin + at, hd, one);
        // A row of values is a token's share of a page, and rounding is the same for keys.
        ops.put_value(one, hd, h, to, bf16);
        ops.put_value(values + h * hd, hd, kv_heads + h, to, bf16);
      }
    }
  });
}

void DecoderLayer::before_attention(const float* x, int64_t rows, const float* cos, const float* sin,
                                    const int32_t* positions, const int64_t* slots, const KvPool& pool, int64_t layer,
                                    float* q) const {
  const auto& ops = norm_rope_kernels();
  const int64_t hd = shape_.head_dim, heads = shape_.heads, kv_heads = shape_.kv_heads;
  const int64_t width = (heads + 2 * kv_heads) * hd;
  float* qkv = project(x, rows, 0, width);
  parallel_for(rows, grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* queries = qkv + row * width;
      float* keys = queries + heads * hd;
      const float* values = keys + kv_heads * hd;
      const float* c = cos + positions[row] * (hd / 2);
      const float* s = sin + positions[row] * (hd / 2);
      const int64_t block = slots[row] / 16 * pool.block_stride() * pool.item(), offset = slots[row] % 16;
      for (int64_t h = 0; h < heads; ++h) {
        float* one = queries + h * hd;
        if (q_norm_.data()) ops.rms_norm(one, q_norm_.data(), hd, shape_.eps, one);
        ops.rope(one, c, s, hd, q + (row * heads + h) * hd);
      }
      for (int64_t h = 0; h < kv_heads; ++h) {
        float* one = keys + h * hd;
        if (k_norm_.data()) ops.rms_norm(one, k_norm_.data(), hd, shape_.eps, one);
        ops.rope(one, c, s, hd, one);
        ops.put_key(one, hd, offset, pool.base(layer, 0, h) + block, pool.bf16);
        ops.put_value(values + h * hd, hd, offset, pool.base(layer, 1, h) + block, pool.bf16);
      }
    }
  });
}

void DecoderLayer::after_attention(float* x, const float* attn, int64_t rows) const {
  const auto& ops = norm_rope_kernels();
  const int64_t hidden = shape_.hidden, inter = shape_.inter;
  Workspace& space = workspace();
  const Output residual{x, hidden, x};
  if (matrices_.o.quantized()) {
    quantize_rows(attn, rows, matrices_.o.k(), space.quantized);
    matrices_.o.run(space.quantized, residual);
  } else {
    matrices_.o.run(attn, rows, residual);
  }
  space.gate_up.reserve(static_cast<size_t>(rows * 2 * inter));
  float* gate_up = space.gate_up.data();
  make_and_multiply(
      matrices_.gate_up, rows,
      [&](int64_t row, float* to) { ops.rms_norm(x + row * hidden, post_norm_.data(), hidden, shape_.eps, to); },
      Output{gate_up, 2 * inter});
  make_and_multiply(
      matrices_.down, rows,
      [&](int64_t row, float* to) {
        const float* gate = gate_up + row * 2 * inter;
        ops.silu_mul(gate, gate + inter, inter, to);
      },
      residual);
}

void head(const float* x, int64_t rows, const float* norm, float eps, const Linear& linear, float* logits) {
  const int64_t hidden = linear.k();
  make_and_multiply(
      linear, rows,
      [&](int64_t row, float* to) { norm_rope_kernels().rms_norm(x + row * hidden, norm, hidden, eps, to); },
      Output{logits, linear.n()});
}

}  // namespace statepool
