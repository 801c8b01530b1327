// Binds the gradients of norms, rotation, softmax and silu * up, over rows that may be parts of wider ones.
#include "gradient.h"

#include <nanobind/stl/optional.h>

#include <algorithm>
#include <optional>

#include "arrays.h"
#include "memory.h"
#include "norm_rope.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool {
namespace {

using Vector = Array<const float, 1>;
using Table = std::optional<Array<const float, 2>>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using RowsOut = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;

constexpr int64_t kChunk = 64;  // rows whose share of a weight's gradient is summed at once: fixed, so threads change no bit

template <class A>
void check(const A& array, int64_t rows, int64_t columns, const char* message) {
  require(extent(array, 0) == rows && extent(array, 1) == columns && (columns < 2 || array.stride(1) == 1), message);
}

template <class A>
auto* row_of(const A& array, int64_t row) {
  return array.data() + row * array.stride(0);
}

// Rows of heads, each as wide as its weight; with a table every head is turned by its row's angles.
struct Heads {
  int64_t rows, dim, columns;
  const float *cos = nullptr, *sin = nullptr;

  Heads(const Rows& x, const Vector& w, const Table& cosines, const Table& sines)
      : rows(extent(x, 0)), dim(extent(w, 0)), columns(extent(x, 1)) {
    require(dim > 0 && columns % dim == 0, "x: must be [T, heads * len(w)]");
    check(x, rows, columns, "x: its rows must be contiguous");
    require(cosines.has_value() == sines.has_value(), "cos, sin: give both or none");
    if (!cosines) return;
    require(dim % 2 == 0, "w: a head that turns has an even width");
    check(*cosines, rows, dim / 2, "cos: must be [T, len(w) / 2]");
    check(*sines, rows, dim / 2, "sin: must be [T, len(w) / 2]");
    cos = cosines->data();
    sin = sines->data();
  }
};

void norm_rows(Rows x, Vector w, float eps, RowsOut out, Table cosines, Table sines) {
  const Heads heads(x, w, cosines, sines);
  check(out, heads.rows, heads.columns, "out: must be as x, its rows contiguous");
  const auto& ops = norm_rope_kernels();
  parallel_for(heads.rows, kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * (heads.dim / 2);
      for (int64_t h = 0; h < heads.columns; h += heads.dim) {
        float* to = row_of(out, row) + h;
        ops.rms_norm(row_of(x, row) + h, w.data(), heads.dim, eps, to);
        if (heads.cos) ops.rope(to, heads.cos + at, heads.sin + at, heads.dim, to);
      }
    }
  });
}

void norm_rows_back(Rows x, Vector w, float eps, RowsOut up, Array<float, 1> own, Table cosines, Table sines) {
  const Heads heads(x, w, cosines, sines);
  check(up, heads.rows, heads.columns, "up: must be as x, its rows contiguous");
  const int64_t dim = heads.dim, half = dim / 2, chunks = (heads.rows + kChunk - 1) / kChunk;
  require(extent(own, 0) == dim, "own: must be as w");
  static thread_local Buffer<float> shares, negated;
  shares.reserve(static_cast<size_t>(chunks * dim));
  std::fill_n(shares.data(), chunks * dim, 0.0f);
  negated.reserve(static_cast<size_t>(heads.rows * half));
  if (heads.sin) std::transform(heads.sin, heads.sin + heads.rows * half, negated.data(), [](float s) { return -s; });
  float *const parts = shares.data(), *const back = negated.data();
  parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kChunk; row < std::min(end * kChunk, heads.rows); ++row) {
      float* part = parts + row / kChunk * dim;
      for (int64_t h = 0; h < heads.columns; h += dim) {
        float* one = row_of(up, row) + h;
        if (heads.cos) norm_rope_kernels().rope(one, heads.cos + row * half, back + row * half, dim, one);
        gradient_kernels().rms_norm(row_of(x, row) + h, w.data(), dim, eps, one, part);
      }
    }
  });
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < dim; ++i) own.data()[i] += parts[chunk * dim + i];
}

void silu_mul_back(RowsOut both, RowsOut above) {
  const int64_t rows = extent(above, 0), inner = extent(above, 1);
  check(above, rows, inner, "above: its rows must be contiguous");
  check(both, rows, 2 * inner, "both: must be [T, 2 * columns of above], its rows contiguous");
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      gradient_kernels().silu_mul(row_of(both, row), row_of(both, row) + inner, inner, row_of(above, row));
  });
}

void softmax_back(Array<float, 3> scores, Array<float, 3> up, Array<const float, 2> along,
                  std::optional<Array<const bool, 2>> hidden, int64_t width) {
  const int64_t count = extent(scores, 0), queries = extent(scores, 1), n = extent(scores, 2), above = n - width;
  require(extent(up, 0) == count && extent(up, 1) == queries && extent(up, 2) == n, "up: must be as scores");
  require(extent(along, 0) == count && extent(along, 1) == queries, "along: must have an item per row of scores");
  require(width > 0 && above >= 0 && queries % width == 0, "width: must divide the queries and be at most their keys");
  require(!hidden || (extent(*hidden, 0) == count && extent(*hidden, 1) == above), "hidden: must be [N, keys - width]");
  const int64_t group = queries / width;
  parallel_for(count * queries, kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const bool* mask = hidden ? hidden->data() + row / queries * above : nullptr;
      gradient_kernels().softmax(scores.data() + row * n, up.data() + row * n, above + row % queries / group + 1, n, mask,
                                 above, along.data()[row]);
    }
  });
}

}  // namespace
}  // namespace statepool

void bind_gradient(nb::module_& m) {
  using namespace statepool;
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def("norm_rows", &norm_rows, "x"_a.noconvert(), "w"_a.noconvert(), "eps"_a, "out"_a.noconvert(),
        "cos"_a.noconvert() = nb::none(), "sin"_a.noconvert() = nb::none(), Release(),
        "out = RMSNorm of every head of x [T, heads * len(w)], turned by its row's angles cos, sin [T, len(w) / 2].");
  m.def("norm_rows_back", &norm_rows_back, "x"_a.noconvert(), "w"_a.noconvert(), "eps"_a, "up"_a.noconvert(),
        "own"_a.noconvert(), "cos"_a.noconvert() = nb::none(), "sin"_a.noconvert() = nb::none(), Release(),
        "up, the gradient at out of norm_rows, becomes that at x; own gains that at w.");
  m.def("softmax_back", &softmax_back, "scores"_a.noconvert(), "up"_a.noconvert(), "along"_a.noconvert(),
        "hidden"_a.noconvert().none(), "width"_a, Release(),
        "Causal attention [N, group * width, keys], a query's group beside each other, the last `width` keys their own: scores "
        "become weights, up the gradient at scores: weights * (up - along [N, queries]). hidden bool [N, keys - width] or None.");
  m.def("silu_mul_back", &silu_mul_back, "both"_a.noconvert(), "above"_a.noconvert(), Release(),
        "both = gate, other [T, 2 * n]; above [T, n] is the gradient at silu(gate) * other and becomes that product, and "
        "both becomes the gradients at gate and other.");
}
