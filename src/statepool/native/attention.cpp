// Cuts attention into work items (rows of one request x KV heads, and segments where items are few) for the pool.
#include "attention.h"

#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "arrays.h"
#include "memory.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool {
namespace {

constexpr int64_t kTileVectors = 24;  // query vectors of one KV head: enough to amortise a page, few enough for the cache
constexpr int64_t kItemVectors = 32;  // of one item: rows that read much and compute little take heads together
constexpr int64_t kItemsPerThread = 4;

struct Tile {
  int64_t row, rows;      // of the whole call
  int64_t position;       // of the first row
  int64_t old_pages;      // pages that hold no row of this call
  int64_t segments;       // from `first_segment` on, that its last row sees
  const int32_t* blocks;  // the request's table
};

struct Item {
  const Tile* tile;
  int64_t head, heads;  // KV heads
};

struct Call {
  const float* q;
  int64_t rows, heads, kv_heads, head_dim;
  KvPool pool;
  int64_t layer;
  float scale;
  int64_t first_segment;  // segments before it are not read
  int64_t max_segments;   // segments of the longest row
  std::vector<Tile>& tiles;  // of the calling thread: kept between calls
  std::vector<Item>& items;
  int64_t group() const { return heads / kv_heads; }
  int64_t vectors(const Item& item) const { return item.heads * item.tile->rows * group(); }
};

struct Scratch {
  Buffer<float> memory;
  float *q, *scores, *widened, *m, *l, *acc, *m2, *l2, *acc2;

  void reserve(int64_t vectors, int64_t head_dim) {
    const int64_t wide = vectors * head_dim, page = kPage * head_dim;
    memory.reserve(static_cast<size_t>(3 * wide + 2 * page + vectors * (kPage + 4)));
    float* at = memory.data();
    const auto take = [&at](int64_t n) {
      float* p = at;
      at += n;
      return p;
    };
    q = take(wide), acc = take(wide), acc2 = take(wide), widened = take(2 * page), scores = take(vectors * kPage);
    m = take(vectors), l = take(vectors), m2 = take(vectors), l2 = take(vectors);
  }
};

Scratch& scratch_of_thread() {
  static thread_local Scratch scratch;
  return scratch;
}

// Positions, lengths and block numbers are checked here: a wrong table would read foreign memory.
Call prepare(const Array<const float, 3>& q, const PoolArray& pool_array, int64_t layer,
             const Array<const int32_t, 2>& tables, const Array<const int32_t, 1>& query_start,
             const Array<const int32_t, 1>& context_len, float scale, int64_t first_segment, int64_t segments) {
  static thread_local std::vector<Tile> tiles;
  static thread_local std::vector<Item> items;
  tiles.clear();
  items.clear();
  Call call{q.data(), static_cast<int64_t>(q.shape(0)), static_cast<int64_t>(q.shape(1)), 0,
            static_cast<int64_t>(q.shape(2)), KvPool(pool_array), layer, scale, first_segment, 0, tiles, items};
  call.kv_heads = call.pool.kv_heads;
  const int64_t requests = static_cast<int64_t>(context_len.shape(0)), width = static_cast<int64_t>(tables.shape(1));
  require(call.pool.head_dim() == call.head_dim, "q: head_dim differs from the pool's");
  require(call.kv_heads > 0 && call.heads % call.kv_heads == 0, "q: heads must be a multiple of the pool's kv_heads");
  require(layer >= 0 && layer < call.pool.layers, "layer: out of range");
  require(first_segment >= 0, "first: must not be negative");
  require(static_cast<int64_t>(tables.shape(0)) == requests, "block_tables: one row per request");
  require(static_cast<int64_t>(query_start.shape(0)) == requests + 1, "query_start: must have one item more than context_len");
  require(query_start.data()[0] == 0 && query_start.data()[requests] == call.rows, "query_start: must go from 0 to the rows of q");
  const int64_t tile_rows = std::max<int64_t>(1, kTileVectors / call.group());
  for (int64_t r = 0; r < requests; ++r) {
    const int64_t begin = query_start.data()[r], end = query_start.data()[r + 1], context = context_len.data()[r];
    require(begin <= end, "query_start: must not decrease");
    require(end - begin <= context, "context_len: must count the rows of this call too");
    const int64_t pages = (context + kPage - 1) / kPage;
    require(pages <= width, "block_tables: too few blocks for context_len");
    const int32_t* blocks = tables.data() + r * width;
    const int64_t from = std::min(pages, first_segment * kSegmentPages);
    const int64_t to = segments < 0 ? pages : std::min(pages, (first_segment + segments) * kSegmentPages);
    for (int64_t i = from; i < to && begin < end; ++i)
      require(blocks[i] >= 0 && blocks[i] < call.pool.blocks, "block_tables: block number out of range");
    for (int64_t row = begin; row < end; row += tile_rows) {
      const int64_t rows = std::min(tile_rows, end - row), position = context - (end - row);
      int64_t seen = (position + rows + kSegment - 1) / kSegment - first_segment;
      if (segments >= 0) seen = std::min(seen, segments);
      call.tiles.push_back({row, rows, position, (context - (end - begin)) / kPage, std::max<int64_t>(seen, 0), blocks});
      call.max_segments = std::max(call.max_segments, seen);
    }
  }
  for (const Tile& tile : call.tiles) {
    const int64_t together = std::clamp<int64_t>(kItemVectors / (tile.rows * call.group()), 1, call.kv_heads);
    for (int64_t head = 0; head < call.kv_heads; head += together)
      call.items.push_back({&tile, head, std::min(together, call.kv_heads - head)});
  }
  return call;
}

// Calls each(vector of the item, query vector of the call) in the order of the item: [heads][rows][group].
template <class Each>
void for_vectors(const Call& call, const Item& item, Each&& each) {
  const int64_t group = call.group();
  int64_t v = 0;
  for (int64_t head = item.head; head < item.head + item.heads; ++head)
    for (int64_t row = item.tile->row; row < item.tile->row + item.tile->rows; ++row)
      for (int64_t i = 0; i < group; ++i, ++v) each(v, row * call.heads + head * group + i);
}

// The thread's scratch, with the item's queries side by side.
Scratch& scratch_for(const Call& call, const Item& item) {
  Scratch& s = scratch_of_thread();
  s.reserve(call.vectors(item), call.head_dim);
  for_vectors(call, item, [&](int64_t v, int64_t at) {
    std::copy_n(call.q + at * call.head_dim, call.head_dim, s.q + v * call.head_dim);
  });
  return s;
}

void run_segment(const Call& call, const Item& item, int64_t segment, Scratch& scratch, float* m, float* l, float* acc,
                 int64_t first_page = 0, int64_t last_page = kSegmentPages) {
  const Tile& tile = *item.tile;
  const int64_t start = (call.first_segment + segment) * kSegment;
  const int64_t pages = (tile.position + tile.rows - start + kPage - 1) / kPage;
  SegmentJob job;
  job.q = scratch.q;
  job.heads = static_cast<int>(item.heads);
  job.vectors = static_cast<int>(tile.rows * call.group());
  job.group = static_cast<int>(call.group());
  job.head_dim = static_cast<int>(call.head_dim);
  job.first_position = tile.position - start;
  job.pages = static_cast<int>(std::clamp<int64_t>(pages, 0, last_page));
  job.first_page = static_cast<int>(first_page);
  job.blocks = tile.blocks + start / kPage;
  job.keys = call.pool.base(call.layer, 0, item.head);
  job.values = call.pool.base(call.layer, 1, item.head);
  job.block_stride = call.pool.block_stride();
  job.scale = call.scale;
  job.scores = scratch.scores;
  job.widened = scratch.widened;
  job.m = m;
  job.l = l;
  job.acc = acc;
  (call.pool.bf16 ? attention_kernels().segment_bf16 : attention_kernels().segment_float)(job);
}

void fold_into(const Call& call, const Item& item, float* m, float* l, float* acc, const float* m2, const float* l2,
               const float* acc2) {
  attention_kernels().fold(m, l, acc, m2, l2, acc2, static_cast<int>(call.vectors(item)), static_cast<int>(call.head_dim));
}

void write(const Call& call, const Item& item, const float* m, const float* l, const float* acc, float* out, float* lse) {
  for_vectors(call, item, [&](int64_t v, int64_t at) {
    attention_kernels().finish(acc + v * call.head_dim, l[v], out + at * call.head_dim, static_cast<int>(call.head_dim));
    if (lse) lse[at] = static_cast<float>(static_cast<double>(m[v]) + std::log(static_cast<double>(l[v])));
  });
}

// Calls work(item, scratch with the queries packed) for every item, in parallel.
template <class Work>
void for_items(const Call& call, Work&& work) {
  parallel_for(static_cast<int64_t>(call.items.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Item& item = call.items[static_cast<size_t>(i)];
      work(item, scratch_for(call, item));
    }
  });
}

// One task per item: segments one after the other, folded as they come.
void run_whole(const Call& call, float* out, float* lse) {
  for_items(call, [&](const Item& item, Scratch& s) {
    run_segment(call, item, 0, s, s.m, s.l, s.acc);
    for (int64_t segment = 1; segment < item.tile->segments; ++segment) {
      run_segment(call, item, segment, s, s.m2, s.l2, s.acc2);
      fold_into(call, item, s.m, s.l, s.acc, s.m2, s.l2, s.acc2);
    }
    write(call, item, s.m, s.l, s.acc, out, lse);
  });
}

// One task per item and segment, for a few long rows on many threads; then the same folds in the same order.
void run_split(const Call& call, float* out, float* lse) {
  const int64_t segments = call.max_segments, items = static_cast<int64_t>(call.items.size());
  int64_t widest = 0;
  for (const Item& item : call.items) widest = std::max(widest, call.vectors(item));
  const int64_t part = widest * (call.head_dim + 2);
  static thread_local Buffer<float> parts_buffer;
  parts_buffer.reserve(static_cast<size_t>(items * segments * part));
  float* parts = parts_buffer.data();
  parallel_for(items * segments, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t segment = i % segments;
      const Item& item = call.items[static_cast<size_t>(i / segments)];
      if (segment >= item.tile->segments) continue;
      float* p = parts + i * part;
      run_segment(call, item, segment, scratch_for(call, item), p, p + widest, p + 2 * widest);
    }
  });
  parallel_for(items, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Item& item = call.items[static_cast<size_t>(i)];
      float* p = parts + i * segments * part;
      for (int64_t segment = 1; segment < item.tile->segments; ++segment) {
        const float* next = p + segment * part;
        fold_into(call, item, p, p + widest, p + 2 * widest, next, next + widest, next + 2 * widest);
      }
      write(call, item, p, p + widest, p + 2 * widest, out, lse);
    }
  });
}

void attention(Array<const float, 3> q, PoolArray pool, int64_t layer, Array<const int32_t, 2> block_tables,
               Array<const int32_t, 1> query_start, Array<const int32_t, 1> context_len, float scale,
               Array<float, 2> out, std::optional<Array<float, 2>> lse) {
  const Call call = prepare(q, pool, layer, block_tables, query_start, context_len, scale, 0, -1);
  require(static_cast<int64_t>(out.shape(0)) == call.rows &&
              static_cast<int64_t>(out.shape(1)) == call.heads * call.head_dim,
          "out: must be [T, heads * head_dim]");
  require(!lse || (static_cast<int64_t>(lse->shape(0)) == call.rows &&
                   static_cast<int64_t>(lse->shape(1)) == call.heads),
          "lse: must be [T, heads]");
  float* lse_data = lse ? lse->data() : nullptr;
  const int workers = threads();
  if (workers > 1 && call.max_segments > 1 && static_cast<int64_t>(call.items.size()) < kItemsPerThread * workers) {
    run_split(call, out.data(), lse_data);
  } else {
    run_whole(call, out.data(), lse_data);
  }
}

// What attention_begin leaves for attention_end, per vector: the folded whole segments, and the one under way.
struct Halfway {
  float *m, *l, *acc;  // [T][heads][2], [T][heads][2], [T][heads][2][head_dim]
};

void carry(const Call& call, const Item& item, int which, bool save, const Halfway& state, float* m, float* l, float* acc) {
  const int64_t hd = call.head_dim;
  for_vectors(call, item, [&](int64_t v, int64_t vector) {
    const int64_t at = vector * 2 + which;
    if (save) {
      state.m[at] = m[v], state.l[at] = l[v];
      std::copy_n(acc + v * hd, hd, state.acc + at * hd);
    } else {
      m[v] = state.m[at], l[v] = state.l[at];
      std::copy_n(state.acc + at * hd, hd, acc + v * hd);
    }
  });
}

Halfway halfway(const Call& call, const Array<float, 3>& m, const Array<float, 3>& l, const Array<float, 4>& acc) {
  const auto fits = [&](const auto& a) {
    return extent(a, 0) == call.rows && extent(a, 1) == call.heads && extent(a, 2) == 2;
  };
  require(fits(m) && fits(l), "m, l: must be [T, heads, 2]");
  require(fits(acc) && extent(acc, 3) == call.head_dim, "acc: must be [T, heads, 2, head_dim]");
  return {m.data(), l.data(), acc.data()};
}

void attention_begin(Array<const float, 3> q, PoolArray pool, int64_t layer, Array<const int32_t, 2> block_tables,
                     Array<const int32_t, 1> query_start, Array<const int32_t, 1> context_len, float scale,
                     Array<float, 3> m, Array<float, 3> l, Array<float, 4> acc) {
  const Call call = prepare(q, pool, layer, block_tables, query_start, context_len, scale, 0, -1);
  const Halfway state = halfway(call, m, l, acc);
  for_items(call, [&](const Item& item, Scratch& s) {
    const int64_t whole = item.tile->old_pages / kSegmentPages, rest = item.tile->old_pages % kSegmentPages;
    for (int64_t segment = 0; segment < whole; ++segment) {
      if (segment == 0) {
        run_segment(call, item, 0, s, s.m, s.l, s.acc);
        continue;
      }
      run_segment(call, item, segment, s, s.m2, s.l2, s.acc2);
      fold_into(call, item, s.m, s.l, s.acc, s.m2, s.l2, s.acc2);
    }
    if (whole) carry(call, item, 0, true, state, s.m, s.l, s.acc);
    if (rest) {
      run_segment(call, item, whole, s, s.m2, s.l2, s.acc2, 0, rest);
      carry(call, item, 1, true, state, s.m2, s.l2, s.acc2);
    }
  });
}

void attention_end(Array<const float, 3> q, PoolArray pool, int64_t layer, Array<const int32_t, 2> block_tables,
                   Array<const int32_t, 1> query_start, Array<const int32_t, 1> context_len, float scale,
                   Array<float, 3> m, Array<float, 3> l, Array<float, 4> acc, Array<float, 2> out) {
  const Call call = prepare(q, pool, layer, block_tables, query_start, context_len, scale, 0, -1);
  const Halfway state = halfway(call, m, l, acc);
  require(extent(out, 0) == call.rows && extent(out, 1) == call.heads * call.head_dim, "out: must be [T, heads * head_dim]");
  for_items(call, [&](const Item& item, Scratch& s) {
    const int64_t whole = item.tile->old_pages / kSegmentPages, rest = item.tile->old_pages % kSegmentPages;
    if (whole) carry(call, item, 0, false, state, s.m, s.l, s.acc);
    for (int64_t segment = whole; segment < item.tile->segments; ++segment) {
      const bool first = segment == 0;
      float *to_m = first ? s.m : s.m2, *to_l = first ? s.l : s.l2, *to_acc = first ? s.acc : s.acc2;
      const bool under_way = segment == whole && rest;
      if (under_way) carry(call, item, 1, false, state, to_m, to_l, to_acc);
      run_segment(call, item, segment, s, to_m, to_l, to_acc, under_way ? rest : 0);
      if (!first) fold_into(call, item, s.m, s.l, s.acc, s.m2, s.l2, s.acc2);
    }
    write(call, item, s.m, s.l, s.acc, out.data(), nullptr);
  });
}

void attention_segments(Array<const float, 3> q, PoolArray pool, int64_t layer, Array<const int32_t, 2> block_tables,
                        Array<const int32_t, 1> query_start, Array<const int32_t, 1> context_len, float scale,
                        int64_t first, Array<float, 3> m, Array<float, 3> l, Array<float, 4> acc) {
  const int64_t segments = static_cast<int64_t>(m.shape(2));
  const Call call = prepare(q, pool, layer, block_tables, query_start, context_len, scale, first, segments);
  const auto fits = [&](const auto& a) {
    return static_cast<int64_t>(a.shape(0)) == call.rows && static_cast<int64_t>(a.shape(1)) == call.heads &&
           static_cast<int64_t>(a.shape(2)) == segments;
  };
  require(fits(m), "m: must be [T, heads, segments]");
  require(fits(l), "l: must be [T, heads, segments]");
  require(fits(acc) && static_cast<int64_t>(acc.shape(3)) == call.head_dim, "acc: must be [T, heads, segments, head_dim]");
  parallel_for(static_cast<int64_t>(call.items.size()) * segments, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t segment = i % segments;
      const Item& item = call.items[static_cast<size_t>(i / segments)];
      const bool seen = segment < item.tile->segments;
      Scratch& s = scratch_for(call, item);
      if (seen) run_segment(call, item, segment, s, s.m, s.l, s.acc);
      for_vectors(call, item, [&](int64_t v, int64_t vector) {
        const int64_t at = vector * segments + segment;
        m.data()[at] = seen ? s.m[v] : -std::numeric_limits<float>::infinity();
        l.data()[at] = seen ? s.l[v] : 0.0f;
        if (seen) {
          std::copy_n(s.acc + v * call.head_dim, call.head_dim, acc.data() + at * call.head_dim);
        } else {
          std::fill_n(acc.data() + at * call.head_dim, call.head_dim, 0.0f);
        }
      });
    }
  });
}

void merge_segments(Array<const float, 3> m, Array<const float, 3> l, Array<const float, 4> acc, Array<float, 2> out,
                    std::optional<Array<float, 2>> lse) {
  const int64_t rows = static_cast<int64_t>(m.shape(0)), heads = static_cast<int64_t>(m.shape(1));
  const int64_t segments = static_cast<int64_t>(m.shape(2)), head_dim = static_cast<int64_t>(acc.shape(3));
  require(segments > 0, "m: needs at least one segment");
  require(head_dim > 0 && head_dim % 16 == 0, "acc: head_dim must be a multiple of 16");
  for (size_t axis = 0; axis < 3; ++axis)
    require(l.shape(axis) == m.shape(axis) && acc.shape(axis) == m.shape(axis), "l, acc: must have the shape of m");
  require(static_cast<int64_t>(out.shape(0)) == rows && static_cast<int64_t>(out.shape(1)) == heads * head_dim,
          "out: must be [T, heads * head_dim]");
  require(!lse || (static_cast<int64_t>(lse->shape(0)) == rows && static_cast<int64_t>(lse->shape(1)) == heads),
          "lse: must be [T, heads]");
  parallel_for(rows * heads, 8, [&](int64_t begin, int64_t end) {
    Scratch& s = scratch_of_thread();
    s.reserve(1, head_dim);
    for (int64_t v = begin; v < end; ++v) {
      const float *ms = m.data() + v * segments, *ls = l.data() + v * segments;
      const float* sums = acc.data() + v * segments * head_dim;
      *s.m = ms[0];
      *s.l = ls[0];
      std::copy_n(sums, head_dim, s.acc);
      for (int64_t i = 1; i < segments; ++i)
        attention_kernels().fold(s.m, s.l, s.acc, ms + i, ls + i, sums + i * head_dim, 1, static_cast<int>(head_dim));
      attention_kernels().finish(s.acc, *s.l, out.data() + v * head_dim, static_cast<int>(head_dim));
      if (lse) lse->data()[v] = static_cast<float>(static_cast<double>(*s.m) + std::log(static_cast<double>(*s.l)));
    }
  });
}

void fold_segments(Array<float, 2> m, Array<float, 2> l, Array<float, 3> acc, Array<const float, 2> m2, Array<const float, 2> l2,
                   Array<const float, 3> acc2) {
  const int64_t rows = extent(m, 0), heads = extent(m, 1), head_dim = extent(acc, 2);
  require(head_dim > 0 && head_dim % 16 == 0, "acc: head_dim must be a multiple of 16");
  for (size_t axis = 0; axis < 2; ++axis)
    require(l.shape(axis) == m.shape(axis) && m2.shape(axis) == m.shape(axis) && l2.shape(axis) == m.shape(axis) &&
                acc.shape(axis) == m.shape(axis) && acc2.shape(axis) == m.shape(axis),
            "l, acc, m2, l2, acc2: must have the shape of m");
  require(extent(acc2, 2) == head_dim, "acc2: must have the shape of acc");
  parallel_for(rows * heads, 8, [&](int64_t begin, int64_t end) {
    attention_kernels().fold(m.data() + begin, l.data() + begin, acc.data() + begin * head_dim, m2.data() + begin, l2.data() + begin,
                             acc2.data() + begin * head_dim, static_cast<int>(end - begin), static_cast<int>(head_dim));
  });
}

}  // namespace
}  // namespace statepool

void bind_attention(nb::module_& m) {
  using namespace statepool;
  m.def("attention", &attention, "q"_a.noconvert(), "pool"_a.noconvert(), "layer"_a, "block_tables"_a.noconvert(),
        "query_start"_a.noconvert(), "context_len"_a.noconvert(), "scale"_a, "out"_a.noconvert(),
        "lse"_a.noconvert() = nb::none(), nb::call_guard<nb::gil_scoped_release>(),
        "Causal attention of q [T, heads, hd] over the paged pool into out [T, heads * hd]; lse [T, heads].");
  m.def("attention_begin", &attention_begin, "q"_a.noconvert(), "pool"_a.noconvert(), "layer"_a,
        "block_tables"_a.noconvert(), "query_start"_a.noconvert(), "context_len"_a.noconvert(), "scale"_a,
        "m"_a.noconvert(), "l"_a.noconvert(), "acc"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "The part of attention that needs no key of this call's rows: whole pages before them. For attention_end to go on.");
  m.def("attention_end", &attention_end, "q"_a.noconvert(), "pool"_a.noconvert(), "layer"_a, "block_tables"_a.noconvert(),
        "query_start"_a.noconvert(), "context_len"_a.noconvert(), "scale"_a, "m"_a.noconvert(), "l"_a.noconvert(),
        "acc"_a.noconvert(), "out"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "The rest, to the bits of one attention call: out [T, heads * hd].");
  m.def("attention_segments", &attention_segments, "q"_a.noconvert(), "pool"_a.noconvert(), "layer"_a,
        "block_tables"_a.noconvert(), "query_start"_a.noconvert(), "context_len"_a.noconvert(), "scale"_a, "first"_a,
        "m"_a.noconvert(), "l"_a.noconvert(), "acc"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "Un-normalised attention per segment of 1024 tokens, segments first .. first + m.shape[2].");
  m.def("fold_segments", &fold_segments, "m"_a.noconvert(), "l"_a.noconvert(), "acc"_a.noconvert(), "m2"_a.noconvert(),
        "l2"_a.noconvert(), "acc2"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "Folds a later segment (m2, l2 [T, heads], acc2 [T, heads, hd]) into an earlier one, as merge_segments does.");
  m.def("merge_segments", &merge_segments, "m"_a.noconvert(), "l"_a.noconvert(), "acc"_a.noconvert(),
        "out"_a.noconvert(), "lse"_a.noconvert() = nb::none(), nb::call_guard<nb::gil_scoped_release>(),
        "Folds the segments of attention_segments in order: the bits of one attention call.");
}
