// Block attention of whole documents for training: the blocks every query reads, and attention over them, block-major.
//
// A query's blocks are folded in order of position, each computed by chains of its own: threads share rows out as they
// like and the bits stay.
#include "blocks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../arrays.h"
#include "../attention.h"
#include "../memory.h"
#include "../pool.h"
#include "wave.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool {
namespace {

constexpr int64_t kRows = 24;  // queries that pass over a block together: their scores stay in the second cache
constexpr int64_t kLeast = 1024;  // rows of a work item, so that a block has many queries in it

struct Scratch {
  Buffer<float> memory;
  std::vector<int32_t> rows, starts;
};

Scratch& scratch_of_thread() {
  static thread_local Scratch one;
  return one;
}

// Row c of `rows` (stride elements apart) as column c of tiles of sixteen; those beyond `count` are zero.
void to_tiles(const float* rows, int64_t stride, int64_t count, int64_t hd, float* tiles) {
  for (int64_t first = 0; first < count; first += 16) {
    float* tile = tiles + first * hd;
    for (int64_t d = 0; d < hd; ++d)
      for (int64_t c = 0; c < 16; ++c) tile[d * 16 + c] = first + c < count ? rows[(first + c) * stride + d] : 0.0f;
  }
}

int64_t rounded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

struct Shape {
  int64_t tokens, heads, kv_heads, hd, block, slots;
  int64_t group() const { return heads / kv_heads; }
  int64_t blocks() const { return (tokens + block - 1) / block; }
};

Shape checked(const Array<const float, 3>& q, const Array<const float, 3>& k, int64_t block, const Array<int32_t, 3>& chosen) {
  const Shape shape{extent(q, 0), extent(q, 1), extent(k, 1), extent(q, 2), block, extent(chosen, 1)};
  require(shape.hd > 0 && shape.hd % 16 == 0, "q: head_dim must be a multiple of 16");
  require(extent(k, 0) == shape.tokens && extent(k, 2) == shape.hd, "k: must be [T, kv_heads, head_dim]");
  require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, "q: heads must be a multiple of kv_heads");
  require(block > 0, "block: must be positive");
  require(extent(chosen, 0) == shape.heads && extent(chosen, 2) == shape.tokens && shape.slots > 0,
          "chosen: must be [heads, slots, T]");
  return shape;
}

// Scores of one query head against all means; rows [begin, end) of q.
void choose_rows(const Shape& shape, const float* q, const float* means, int64_t tile_count, int64_t kv, int64_t begin,
                 int64_t end, bool together, int32_t* chosen) {
  const int64_t stride = tile_count * 16, group = shape.group(), heads = together ? 1 : group;
  Scratch& s = scratch_of_thread();
  s.memory.reserve(static_cast<size_t>(kRows * group * stride));
  float* scores = s.memory.data();
  s.rows.resize(static_cast<size_t>(shape.slots));
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t n = std::min(kRows, end - first), past = rounded((first + n - 1) / shape.block, 16) / 16;
    for (int64_t v = 0; v < group; ++v) {
      float* mine = scores + v * kRows * stride;
      for (int64_t i = first + n; i < std::min(first + n + kRows, end); ++i)
        for (int64_t d = 0; d < shape.hd; d += 16)
          __builtin_prefetch(q + (i * shape.heads + kv * group + v) * shape.hd + d);
      block_kernels().score(q + (first * shape.heads + kv * group + v) * shape.hd, shape.heads * shape.hd, n, means, past,
                            static_cast<int>(shape.hd), mine, stride);
      if (together && v > 0)
        for (int64_t c = 0; c < n * stride; ++c) scores[c] += mine[c];
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = first + i, own = row / shape.block, wanted = std::min(shape.slots - 1, own);
      for (int64_t v = 0; v < group; ++v) {
        int32_t* mine = chosen + (kv * group + v) * shape.slots * shape.tokens + row;
        if (v < heads && wanted > 0)
          block_kernels().best(scores + (v * kRows + i) * stride, own, wanted, s.rows.data());
        mine[0] = static_cast<int32_t>(own);
        for (int64_t slot = 1; slot < shape.slots; ++slot)
          mine[slot * shape.tokens] = slot <= wanted ? s.rows[static_cast<size_t>(slot - 1)] : -1;
      }
    }
  }
}

void choose_blocks(Array<const float, 3> q, Array<const float, 3> k, int64_t block, bool together, Array<int32_t, 3> chosen) {
  const Shape shape = checked(q, k, block, chosen);
  const int64_t full = shape.tokens / block, tiles = rounded(full, 16) / 16, hd = shape.hd;
  std::vector<float> means(static_cast<size_t>(std::max<int64_t>(full, 1) * hd));
  Buffer<float> tiled;
  tiled.reserve(static_cast<size_t>(std::max<int64_t>(tiles, 1) * 16 * hd));
  for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
    parallel_for(full, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        float* mean = means.data() + b * hd;
        std::fill_n(mean, hd, 0.0f);
        for (int64_t j = 0; j < block; ++j) {
          const float* key = k.data() + ((b * block + j) * shape.kv_heads + kv) * hd;
          for (int64_t d = 0; d < hd; ++d) mean[d] += key[d];
        }
        for (int64_t d = 0; d < hd; ++d) mean[d] /= static_cast<float>(block);
      }
    });
    to_tiles(means.data(), hd, full, hd, tiled.data());
    parallel_for(shape.tokens, 256, [&](int64_t begin, int64_t end) {
      choose_rows(shape, q.data(), tiled.data(), tiles, kv, begin, end, together, chosen.data());
    });
  }
}

// A block behind a query's own would read past its keys.
void check_order(const Shape& shape, const int32_t* chosen) {
  for (int64_t slot = 0; slot < shape.heads * shape.slots; ++slot, chosen += shape.tokens)
    for (int64_t row = 0; row < shape.tokens; ++row)
      require(chosen[row] * shape.block <= row, "chosen: a query cannot read a block behind its own");
}

// Rows of one KV head side by side, block by block in tiles and as rows, where asked for.
void pack(const Shape& shape, const float* from, int64_t kv, Buffer<float>* tiles, Buffer<float>* rows) {
  const int64_t hd = shape.hd, keys = rounded(shape.block, 16), step = shape.kv_heads * hd;
  if (tiles) tiles->reserve(static_cast<size_t>(shape.blocks() * keys * hd));
  if (rows) rows->reserve(static_cast<size_t>(shape.tokens * hd));
  parallel_for(shape.blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t start = b * shape.block, count = std::min(shape.block, shape.tokens - start);
      const float* first = from + start * step + kv * hd;
      if (tiles) to_tiles(first, step, count, hd, tiles->data() + b * keys * hd);
      for (int64_t i = 0; rows && i < count; ++i) std::copy_n(first + i * step, hd, rows->data() + (start + i) * hd);
    }
  });
}

// Places (slot * T + row) of rows [begin, end) of one head, by block and in order: block b's end at starts[b].
void list_places(const Shape& shape, const int32_t* chosen, int64_t begin, int64_t end, std::vector<int32_t>& starts,
                 std::vector<int32_t>& places) {
  const auto blocks = static_cast<size_t>(shape.blocks());
  starts.assign(blocks + 1, 0);
  places.resize(static_cast<size_t>((end - begin) * shape.slots));
  const auto each = [&](auto&& body) {
    for (int64_t at = 0; at < shape.slots * shape.tokens; at += shape.tokens)
      for (int64_t i = at + begin; i < at + end; ++i)
        if (chosen[i] >= 0) body(static_cast<size_t>(chosen[i]), static_cast<int32_t>(i));
  };
  each([&](size_t b, int32_t) { ++starts[b + 1]; });
  for (size_t b = 0; b < blocks; ++b) starts[b + 1] += starts[b];
  each([&](size_t b, int32_t place) { places[static_cast<size_t>(starts[b]++)] = place; });
}

// Queries of one head that pass over one block together.
struct Group {
  int64_t some, most;  // queries, and keys that the last of them sees
  int32_t rows[kRows];
  int64_t seen[kRows];
  Group(const Shape& shape, const int32_t* places, int64_t left, int64_t b) : some(std::min(kRows, left)), most(0) {
    const int64_t start = b * shape.block, count = std::min(shape.block, shape.tokens - start);
    for (int64_t i = 0; i < some; ++i) {
      rows[i] = static_cast<int32_t>(places[i] % shape.tokens);
      seen[i] = std::min(count, rows[i] - start + 1);
      most = std::max(most, seen[i]);
    }
  }
  void gather(const float* from, int64_t step, int64_t hd, float scale, float* to) const {
    for (int64_t i = 0; i < some; ++i)
      for (int64_t d = 0; d < hd; ++d) to[i * hd + d] = from[rows[i] * step + d] * scale;
  }
};

// Rows [begin, end) of one head: block after block over the rows that read it, folded into out, m and l.
void attend_rows(const Shape& shape, const float* q, const float* tiles, const float* values, const int32_t* chosen,
                 int64_t head, int64_t begin, int64_t end, float scale, float* out, float* lse) {
  const int64_t hd = shape.hd, n = end - begin, keys = rounded(shape.block, 16), step = shape.heads * hd;
  Scratch& s = scratch_of_thread();
  s.memory.reserve(static_cast<size_t>(kRows * (2 * hd + keys) + 2 * n));
  float *rows = s.memory.data(), *acc = rows + kRows * hd, *scores = acc + kRows * hd, *m = scores + kRows * keys, *l = m + n;
  std::fill_n(m, n, -std::numeric_limits<float>::infinity());
  std::fill_n(l, n, 0.0f);
  q += head * hd;
  out += head * hd;
  list_places(shape, chosen, begin, end, s.starts, s.rows);
  const BlockKernels& ops = block_kernels();
  const int width = static_cast<int>(hd);
  for (int64_t b = 0, at = 0; b < shape.blocks(); ++b) {
    for (const int64_t last = s.starts[static_cast<size_t>(b)]; at < last;) {
      const Group group(shape, s.rows.data() + at, last - at, b);
      at += group.some;
      group.gather(q, step, hd, scale, rows);
      ops.score(rows, hd, group.some, tiles + b * keys * hd, rounded(group.most, 16) / 16, width, scores, keys);
      // The next group's rows come from anywhere: fetched while this one's are in use.
      for (int64_t i = at; i < std::min(at + kRows, static_cast<int64_t>(s.starts.back())); ++i)
        for (int64_t d = 0; d < hd; d += 16) {
          const int64_t where = s.rows[static_cast<size_t>(i)] % shape.tokens * step + d;
          __builtin_prefetch(q + where);
          __builtin_prefetch(out + where, 1);
        }
      float m1[kRows], l1[kRows], m2[kRows], l2[kRows], *to[kRows];
      for (int64_t i = 0; i < group.some; ++i) {
        l2[i] = wave_kernels().soften(scores + i * keys, group.seen[i], m2 + i);
        std::fill(scores + i * keys + group.seen[i], scores + i * keys + group.most, 0.0f);
        m1[i] = m[group.rows[i] - begin], l1[i] = l[group.rows[i] - begin], to[i] = out + group.rows[i] * step;
      }
      std::fill_n(acc, group.some * hd, 0.0f);
      ops.weigh(scores, keys, 1, group.some, values + b * shape.block * hd, group.most, width, acc);
      ops.fold(m1, l1, to, m2, l2, acc, group.some, width);
      for (int64_t i = 0; i < group.some; ++i) m[group.rows[i] - begin] = m1[i], l[group.rows[i] - begin] = l1[i];
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    attention_kernels().finish(out + (begin + i) * step, l[i], out + (begin + i) * step, width);
    lse[begin + i] = static_cast<float>(static_cast<double>(m[i]) + std::log(static_cast<double>(l[i])));
  }
}

void block_attention(Array<const float, 3> q, Array<const float, 3> k, Array<const float, 3> v, int64_t block,
                     Array<int32_t, 3> chosen, float scale, Array<float, 3> out, Array<float, 2> lse) {
  const Shape shape = checked(q, k, block, chosen);
  const int64_t hd = shape.hd, tokens = shape.tokens;
  require(extent(v, 0) == tokens && extent(v, 1) == shape.kv_heads && extent(v, 2) == hd, "v: must have the shape of k");
  require(extent(out, 0) == tokens && extent(out, 1) == shape.heads && extent(out, 2) == hd, "out: must have the shape of q");
  require(extent(lse, 0) == shape.heads && extent(lse, 1) == tokens, "lse: must be [heads, T]");
  check_order(shape, chosen.data());
  static thread_local Buffer<float> tiles, values;  // of the calling thread, kept: fresh memory costs like a product
  const int64_t parts = std::clamp<int64_t>((2 * threads() - 1) / shape.group(), 1, tokens / kLeast + 1);
  const int64_t step = (tokens + parts - 1) / parts;
  for (int64_t kv = 0; kv < shape.kv_heads && tokens > 0; ++kv) {
    pack(shape, k.data(), kv, &tiles, nullptr);
    pack(shape, v.data(), kv, nullptr, &values);
    // Plain pointers: in a worker, the names would be the worker's own.
    parallel_for(shape.group() * parts, 1,
                 [&, keys = tiles.data(), rows = values.data()](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t head = kv * shape.group() + item / parts, first = item % parts * step;
        attend_rows(shape, q.data(), keys, rows, chosen.data() + head * shape.slots * tokens, head, first,
                    std::min(tokens, first + step), scale, out.data(), lse.data() + head * tokens);
      }
    });
  }
}

// One KV head's packed arrays and what the queries left.
struct Backward {
  const float *q, *out, *grad, *lse;
  const int32_t* chosen;
  Buffer<float> key_tiles, value_tiles, keys;
  Buffer<float> parts;  // [group][slots][T][hd]: a block's share of a query's gradient
  std::vector<std::vector<int32_t>> starts, places;  // of each head of the group
  float scale;
};

// Gradients of block b's keys and values, and its share of those of the queries that read it.
void block_gradients(const Shape& shape, Backward& call, int64_t kv, int64_t b, float* dk, float* dv) {
  const int64_t hd = shape.hd, keys = rounded(shape.block, 16), start = b * shape.block;
  const int64_t count = std::min(shape.block, shape.tokens - start);
  const int width = static_cast<int>(hd);
  Scratch& s = scratch_of_thread();
  s.memory.reserve(static_cast<size_t>(kRows * (3 * hd + 2 * keys) + 2 * count * hd));
  float *rows = s.memory.data(), *above = rows + kRows * hd, *acc = above + kRows * hd, *p = acc + kRows * hd,
        *slopes = p + kRows * keys, *key_sums = slopes + kRows * keys, *value_sums = key_sums + count * hd;
  std::fill_n(key_sums, 2 * count * hd, 0.0f);
  const BlockKernels& ops = block_kernels();
  for (int64_t g = 0; g < shape.group(); ++g) {
    const int64_t head = kv * shape.group() + g;
    const auto& starts = call.starts[static_cast<size_t>(g)];
    const int32_t* places = call.places[static_cast<size_t>(g)].data();
    for (int64_t at = b == 0 ? 0 : starts[static_cast<size_t>(b - 1)]; at < starts[static_cast<size_t>(b)];) {
      const Group group(shape, places + at, starts[static_cast<size_t>(b)] - at, b);
      group.gather(call.q + head * hd, shape.heads * hd, hd, call.scale, rows);
      group.gather(call.grad + head * hd, shape.heads * hd, hd, 1.0f, above);
      const int64_t tiles = rounded(group.most, 16) / 16, first = b * keys * hd;
      ops.score(rows, hd, group.some, call.key_tiles.data() + first, tiles, width, p, keys);
      ops.score(above, hd, group.some, call.value_tiles.data() + first, tiles, width, slopes, keys);
      for (int64_t i = 0; i < group.some; ++i) {
        const float* out = call.out + (group.rows[i] * shape.heads + head) * hd;
        float spread = 0;
        for (int64_t d = 0; d < hd; ++d) spread += above[i * hd + d] * out[d];
        ops.slope(p + i * keys, slopes + i * keys, tiles * 16, call.lse[head * shape.tokens + group.rows[i]], spread);
        std::fill(p + i * keys + group.seen[i], p + i * keys + group.most, 0.0f);
        std::fill(slopes + i * keys + group.seen[i], slopes + i * keys + group.most, 0.0f);
      }
      std::fill_n(acc, group.some * hd, 0.0f);
      ops.weigh(slopes, keys, 1, group.some, call.keys.data() + start * hd, group.most, width, acc);
      for (int64_t i = 0; i < group.some; ++i) {
        float* part = call.parts.data() + (g * shape.slots * shape.tokens + places[at + i]) * hd;
        for (int64_t d = 0; d < hd; ++d) part[d] = acc[i * hd + d] * call.scale;
      }
      ops.weigh(slopes, 1, keys, group.most, rows, group.some, width, key_sums);
      ops.weigh(p, 1, keys, group.most, above, group.some, width, value_sums);
      at += group.some;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(key_sums + i * hd, hd, dk + ((start + i) * shape.kv_heads + kv) * hd);
    std::copy_n(value_sums + i * hd, hd, dv + ((start + i) * shape.kv_heads + kv) * hd);
  }
}

void block_attention_backward(Array<const float, 3> q, Array<const float, 3> k, Array<const float, 3> v, int64_t block,
                              Array<int32_t, 3> chosen, float scale, Array<const float, 3> out, Array<const float, 2> lse,
                              Array<const float, 3> grad, Array<float, 3> dq, Array<float, 3> dk, Array<float, 3> dv) {
  const Shape shape = checked(q, k, block, chosen);
  const int64_t hd = shape.hd, tokens = shape.tokens;
  for (size_t axis = 0; axis < 3; ++axis) {
    require(extent(v, axis) == extent(k, axis) && extent(dk, axis) == extent(k, axis) && extent(dv, axis) == extent(k, axis),
            "v, dk, dv: must have the shape of k");
    require(extent(out, axis) == extent(q, axis) && extent(grad, axis) == extent(q, axis) && extent(dq, axis) == extent(q, axis),
            "out, grad, dq: must have the shape of q");
  }
  require(extent(lse, 0) == shape.heads && extent(lse, 1) == tokens, "lse: must be [heads, T]");
  check_order(shape, chosen.data());
  Backward call{q.data(), out.data(), grad.data(), lse.data(), chosen.data(), {}, {}, {}, {}, {}, {}, scale};
  const auto group = static_cast<size_t>(shape.group());
  call.starts.resize(group);
  call.places.resize(group);
  call.parts.reserve(group * static_cast<size_t>(shape.slots * tokens * hd));
  for (int64_t kv = 0; kv < shape.kv_heads && tokens > 0; ++kv) {
    pack(shape, k.data(), kv, &call.key_tiles, &call.keys);
    pack(shape, v.data(), kv, &call.value_tiles, nullptr);
    const int32_t* mine = chosen.data() + kv * shape.group() * shape.slots * tokens;
    for (size_t g = 0; g < group; ++g)
      list_places(shape, mine + static_cast<int64_t>(g) * shape.slots * tokens, 0, tokens, call.starts[g], call.places[g]);
    parallel_for(shape.blocks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) block_gradients(shape, call, kv, b, dk.data(), dv.data());
    });
    parallel_for(shape.group() * tokens, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t g = i / tokens, row = i % tokens;
        float* to = dq.data() + (row * shape.heads + kv * shape.group() + g) * hd;
        std::fill_n(to, hd, 0.0f);
        for (int64_t slot = 0; slot < shape.slots; ++slot) {
          const int64_t at = (g * shape.slots + slot) * tokens + row;
          if (mine[at] < 0) continue;
          for (int64_t d = 0; d < hd; ++d) to[d] += call.parts.data()[at * hd + d];
        }
      }
    });
  }
}

}  // namespace
}  // namespace statepool

void bind_blocks(nb::module_& m) {
  using namespace statepool;
  m.def("choose_blocks", &choose_blocks, "q"_a.noconvert(), "k"_a.noconvert(), "block"_a, "together"_a, "chosen"_a.noconvert(),
        nb::call_guard<nb::gil_scoped_release>(),
        "Blocks each query of q [T, heads, hd] reads into chosen int32 [heads, slots, T]: its own, then the past ones with the "
        "best mean key, -1 for none; `together`, the heads of a KV head choose by the sum of their scores.");
  m.def("block_attention", &block_attention, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(), "block"_a,
        "chosen"_a.noconvert(), "scale"_a, "out"_a.noconvert(), "lse"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "Causal attention of q [T, heads, hd] over chosen blocks of k, v [T, kv_heads, hd] into out; lse [heads, T].");
  m.def("block_attention_backward", &block_attention_backward, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(),
        "block"_a, "chosen"_a.noconvert(), "scale"_a, "out"_a.noconvert(), "lse"_a.noconvert(), "grad"_a.noconvert(),
        "dq"_a.noconvert(), "dk"_a.noconvert(), "dv"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "Gradients dq, dk, dv of block_attention for grad [T, heads, hd], from its out and lse.");
}
