// Binds the decoder layer and the small row-wise operators.
#include "layer.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/variant.h>

#include <cstring>
#include <optional>
#include <variant>

#include "norm_rope.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool {
namespace {

using Vector = Array<const float, 1>;
using Matrix = Array<const float, 2>;
using MatrixOut = Array<float, 2>;

int64_t size(const Vector& v) { return static_cast<int64_t>(v.shape(0)); }

bool is(const Matrix& a, int64_t rows, int64_t columns) {
  return static_cast<int64_t>(a.shape(0)) == rows && static_cast<int64_t>(a.shape(1)) == columns;
}
bool is(const MatrixOut& a, int64_t rows, int64_t columns) {
  return static_cast<int64_t>(a.shape(0)) == rows && static_cast<int64_t>(a.shape(1)) == columns;
}

void construct(DecoderLayer* self, const Linear& qkv, const Linear& o, const Linear& gate_up, const Linear& down,
               Vector input_norm, Vector post_norm, std::optional<Vector> q_norm, std::optional<Vector> k_norm,
               float eps, int64_t heads, int64_t kv_heads, int64_t head_dim) {
  require(size(post_norm) == size(input_norm), "post_norm: must have as many items as input_norm");
  require(!q_norm || size(*q_norm) == head_dim, "q_norm: must have head_dim items");
  require(!k_norm || size(*k_norm) == head_dim, "k_norm: must have head_dim items");
  new (self) DecoderLayer({qkv, o, gate_up, down}, {size(input_norm), heads, kv_heads, head_dim, down.k(), eps},
                          input_norm.data(), post_norm.data(), q_norm ? q_norm->data() : nullptr,
                          k_norm ? k_norm->data() : nullptr);
}

void before_attention(const DecoderLayer& self, Matrix x, Matrix cos, Matrix sin, Array<const int32_t, 1> positions,
                      Array<const int64_t, 1> slots, PoolArray pool_array, int64_t layer, MatrixOut q) {
  const LayerShape& shape = self.shape();
  const KvPool pool(pool_array);
  const int64_t rows = static_cast<int64_t>(x.shape(0)), table = static_cast<int64_t>(cos.shape(0));
  require(is(x, rows, shape.hidden), "x: must be [T, hidden]");
  require(is(cos, table, shape.head_dim / 2) && is(sin, table, shape.head_dim / 2),
          "cos, sin: must be [positions, head_dim / 2]");
  require(static_cast<int64_t>(positions.shape(0)) == rows, "positions: must have one item per row of x");
  require(static_cast<int64_t>(slots.shape(0)) == rows, "slots: must have one item per row of x");
  require(pool.kv_heads == shape.kv_heads && pool.head_dim() == shape.head_dim,
          "pool: kv_heads or head_dim differ from the layer's");
  require(layer >= 0 && layer < pool.layers, "layer: out of range");
  require(is(q, rows, shape.heads * shape.head_dim), "q: must be [T, heads * head_dim]");
  for (int64_t row = 0; row < rows; ++row) {
    require(positions.data()[row] >= 0 && positions.data()[row] < table, "positions: outside the rotary table");
    require(slots.data()[row] >= 0 && slots.data()[row] < pool.blocks * 16, "slots: outside the pool");
  }
  self.before_attention(x.data(), rows, cos.data(), sin.data(), positions.data(), slots.data(), pool, layer, q.data());
}

void check_rows(const LayerShape& shape, const Matrix& x, const Matrix& cos, const Matrix& sin,
                const Array<const int32_t, 1>& positions) {
  const int64_t rows = static_cast<int64_t>(x.shape(0)), table = static_cast<int64_t>(cos.shape(0));
  require(is(x, rows, shape.hidden), "x: must be [T, hidden]");
  require(is(cos, table, shape.head_dim / 2) && is(sin, table, shape.head_dim / 2),
          "cos, sin: must be [positions, head_dim / 2]");
  require(static_cast<int64_t>(positions.shape(0)) == rows, "positions: must have one item per row of x");
  for (int64_t row = 0; row < rows; ++row)
    require(positions.data()[row] >= 0 && positions.data()[row] < table, "positions: outside the rotary table");
}

void queries(const DecoderLayer& self, Matrix x, Matrix cos, Matrix sin, Array<const int32_t, 1> positions, MatrixOut q) {
  const LayerShape& shape = self.shape();
  const int64_t rows = static_cast<int64_t>(x.shape(0));
  check_rows(shape, x, cos, sin, positions);
  require(is(q, rows, shape.heads * shape.head_dim), "q: must be [T, heads * head_dim]");
  self.queries(x.data(), rows, cos.data(), sin.data(), positions.data(), q.data());
}

void keys_values(const DecoderLayer& self, Matrix x, Matrix cos, Matrix sin, Array<const int32_t, 1> positions,
                 std::variant<Array<uint16_t, 4>, Array<float, 4>> kv) {
  const LayerShape& shape = self.shape();
  const int64_t rows = static_cast<int64_t>(x.shape(0));
  check_rows(shape, x, cos, sin, positions);
  std::visit(
      [&](auto& out) {
        require(static_cast<int64_t>(out.shape(0)) == rows && out.shape(1) == 2 &&
                    static_cast<int64_t>(out.shape(2)) == shape.kv_heads &&
                    static_cast<int64_t>(out.shape(3)) == shape.head_dim,
                "kv: must be [T, 2, kv_heads, head_dim]");
        self.keys_values(x.data(), rows, cos.data(), sin.data(), positions.data(), sizeof(*out.data()) == 2, out.data());
      },
      kv);
}

void after_attention(const DecoderLayer& self, MatrixOut x, Matrix attn) {
  const LayerShape& shape = self.shape();
  const int64_t rows = static_cast<int64_t>(x.shape(0));
  require(is(x, rows, shape.hidden), "x: must be [T, hidden]");
  require(is(attn, rows, shape.heads * shape.head_dim), "attn: must be [T, heads * head_dim]");
  self.after_attention(x.data(), attn.data(), rows);
}

void run_head(Matrix x, Vector norm, float eps, const Linear& linear, MatrixOut logits) {
  const int64_t rows = static_cast<int64_t>(x.shape(0));
  require(is(x, rows, linear.k()), "x: must be [R, linear.k]");
  require(size(norm) == linear.k(), "norm: must have linear.k items");
  require(is(logits, rows, linear.n()), "logits: must be [R, linear.n]");
  head(x.data(), rows, norm.data(), eps, linear, logits.data());
}

void rms_norm(Matrix x, Vector w, float eps, MatrixOut out) {
  const int64_t rows = static_cast<int64_t>(x.shape(0)), n = size(w);
  require(n > 0, "w: is empty");
  require(is(x, rows, n), "x: must be [T, len(w)]");
  require(is(out, rows, n), "out: must be [T, len(w)]");
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      norm_rope_kernels().rms_norm(x.data() + row * n, w.data(), n, eps, out.data() + row * n);
  });
}

void embed(std::variant<Array<const float, 2>, Array<const uint16_t, 2>> table, Array<const int32_t, 1> tokens,
           MatrixOut out) {
  const int64_t rows = static_cast<int64_t>(tokens.shape(0));
  std::visit(
      [&](const auto& weights) {
        const int64_t vocabulary = static_cast<int64_t>(weights.shape(0)), n = static_cast<int64_t>(weights.shape(1));
        require(is(out, rows, n), "out: must be [T, columns of table]");
        for (int64_t row = 0; row < rows; ++row)
          require(tokens.data()[row] >= 0 && tokens.data()[row] < vocabulary, "tokens: id outside the table");
        for (int64_t row = 0; row < rows; ++row) {
          const auto* from = weights.data() + tokens.data()[row] * n;
          if constexpr (sizeof(*from) == 2) {
            norm_rope_kernels().widen(from, n, out.data() + row * n);
          } else {
            std::memcpy(out.data() + row * n, from, sizeof(float) * static_cast<size_t>(n));
          }
        }
      },
      table);
}

}  // namespace
}  // namespace statepool

void bind_layer(nb::module_& m) {
  using namespace statepool;
  using Release = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<DecoderLayer>(m, "DecoderLayer", "A decoder layer but for its attention, which runs between its two calls.")
      .def("__init__", &construct, "qkv"_a, "o"_a, "gate_up"_a, "down"_a, "input_norm"_a.noconvert(),
           "post_norm"_a.noconvert(), "q_norm"_a.noconvert().none(), "k_norm"_a.noconvert().none(), "eps"_a, "heads"_a,
           "kv_heads"_a, "head_dim"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(),
           nb::keep_alive<1, 5>(), "Four Linear, norms float32 [hidden], q_norm and k_norm [head_dim] or None.")
      .def("before_attention", &before_attention, "x"_a.noconvert(), "cos"_a.noconvert(), "sin"_a.noconvert(),
           "positions"_a.noconvert(), "slots"_a.noconvert(), "pool"_a.noconvert(), "layer"_a, "q"_a.noconvert(),
           Release(), "x [T, hidden] to q [T, heads * head_dim]; K and V go to slots (block * 16 + offset) of the pool.")
      .def("queries", &queries, "x"_a.noconvert(), "cos"_a.noconvert(), "sin"_a.noconvert(), "positions"_a.noconvert(),
           "q"_a.noconvert(), Release(), "The first half of before_attention: x [T, hidden] to q [T, heads * head_dim].")
      .def("keys_values", &keys_values, "x"_a.noconvert(), "cos"_a.noconvert(), "sin"_a.noconvert(),
           "positions"_a.noconvert(), "kv"_a.noconvert(), Release(),
           "The other half: keys and values as rows [T, 2, kv_heads, head_dim], bf16 bits (uint16) or float32.")
      .def("after_attention", &after_attention, "x"_a.noconvert(), "attn"_a.noconvert(), Release(),
           "Output projection and MLP, each added to x [T, hidden] in place.");
  m.def("head", &run_head, "x"_a.noconvert(), "norm"_a.noconvert(), "eps"_a, "linear"_a, "logits"_a.noconvert(),
        Release(), "logits [R, V] = linear(rms_norm(x [R, hidden])).");
  m.def("rms_norm", &rms_norm, "x"_a.noconvert(), "w"_a.noconvert(), "eps"_a, "out"_a.noconvert(), Release(),
        "out = x / sqrt(mean(x^2) + eps) * w, per row of [T, n].");
  m.def("embed", &embed, "table"_a.noconvert(), "tokens"_a.noconvert(), "out"_a.noconvert(), Release(),
        "out [T, n] = rows of table [V, n], float32 or bf16 bits (uint16).");
}
