// MoBA over the paged pool: a query vector attends to its own block and to the past blocks with the best mean keys.
//
// Block-major: the vectors that chose a block pass over it together, and what a vector found there is folded into its
// state. A vector meets its blocks in order of position and shares nothing with the others but loads, so prefill, chunks
// and decode give equal bits, and so does a context that is brought to memory some blocks at a time.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "../arrays.h"
#include "../attention.h"
#include "../memory.h"
#include "../pool.h"
#include "wave.h"
#include "widen.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool {
namespace {

constexpr int64_t kTileVectors = 24;  // query vectors that share the loads of a page, as in dense attention
constexpr int64_t kItemRows = 256;    // of one item: many vectors for a block, and items for all threads
constexpr int64_t kItemsPerThread = 4;

// One request's rows.
struct Part {
  int64_t begin, end, context;
  int64_t position(int64_t row) const { return context - (end - row); }
};

std::vector<Part> parts_of(const Array<const int32_t, 1>& query_start, const Array<const int32_t, 1>& context_len, int64_t rows) {
  const int64_t requests = extent(context_len, 0);
  require(extent(query_start, 0) == requests + 1 && query_start.data()[0] == 0 && query_start.data()[requests] == rows,
          "query_start: must go from 0 to the rows of q");
  std::vector<Part> parts;
  for (int64_t r = 0; r < requests; ++r) {
    const Part part{query_start.data()[r], query_start.data()[r + 1], context_len.data()[r]};
    require(part.begin <= part.end && part.end - part.begin <= part.context,
            "context_len: must count the rows of this call too");
    parts.push_back(part);
  }
  return parts;
}

struct Scratch {
  Buffer<float> memory;
  std::vector<int32_t> order;
  std::vector<int64_t> starts, places;
};

Scratch& scratch_of_thread() {
  static thread_local Scratch one;
  return one;
}

// The blocks that a vector at block `current` reads, ascending, itself last, -1 behind; its scores are those of the means.
void choose(float* scores, int64_t current, int64_t slots, std::vector<int32_t>& order, int32_t* chosen) {
  const int64_t wanted = std::min(slots - 1, current);
  order.clear();
  for (int32_t i = 0; i < current; ++i) order.push_back(i);
  if (wanted < current) {
    // Not a number is no order: such a block comes last, as one that nobody likes.
    for (int64_t i = 0; i < current; ++i)
      if (!(scores[i] == scores[i])) scores[i] = -std::numeric_limits<float>::infinity();
    const auto better = [&](int32_t a, int32_t b) {
      return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    };
    std::nth_element(order.begin(), order.begin() + wanted, order.end(), better);
    std::sort(order.begin(), order.begin() + wanted);
  }
  std::copy_n(order.begin(), wanted, chosen);
  chosen[wanted] = static_cast<int32_t>(current);
  std::fill(chosen + wanted + 1, chosen + slots, -1);
}

using Means = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

int64_t moba_choose(Array<const float, 3> q, Array<const int32_t, 1> query_start, Array<const int32_t, 1> context_len,
                    std::vector<Means> means, int64_t block, Array<int32_t, 3> chosen) {
  const int64_t rows = extent(q, 0), heads = extent(q, 1), hd = extent(q, 2), slots = extent(chosen, 2);
  const std::vector<Part> parts = parts_of(query_start, context_len, rows);
  require(block > 0, "block: must be positive");
  require(extent(chosen, 0) == rows && extent(chosen, 1) == heads && slots > 0, "chosen: must be [T, heads, topk]");
  require(means.size() == parts.size(), "means: one per request");
  std::atomic<int64_t> read{0};
  for (size_t r = 0; r < parts.size(); ++r) {
    const Part& part = parts[r];
    const int64_t kv_heads = extent(means[r], 0), blocks = extent(means[r], 1);
    require(kv_heads > 0 && heads % kv_heads == 0, "means: their heads must divide those of q");
    require(extent(means[r], 2) == hd, "means: must be [kv_heads, blocks, head_dim]");
    require(part.context == 0 || blocks >= (part.context - 1) / block, "means: too few blocks for context_len");
    const int64_t group = heads / kv_heads;
    parallel_for((part.end - part.begin) * kv_heads, 16, [&](int64_t begin, int64_t end) {
      Scratch& s = scratch_of_thread();
      s.memory.reserve(static_cast<size_t>(group * blocks));
      int64_t mine = 0;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = part.begin + i / kv_heads, kv = i % kv_heads, first = row * heads + kv * group;
        const int64_t current = part.position(row) / block;
        if (slots - 1 < current) {
          const float* mean = means[r].data() + kv * blocks * hd;
          wave_kernels().dot_stretch(q.data() + first * hd, static_cast<int>(group), mean, current, static_cast<int>(hd), 1.0f,
                                     s.memory.data(), blocks);
          mine += group * current;
        }
        for (int64_t g = 0; g < group; ++g)
          choose(s.memory.data() + g * blocks, current, slots, s.order, chosen.data() + (first + g) * slots);
      }
      read += mine;
    });
  }
  return read;
}

struct Call {
  const float* q;  // [T][heads][head_dim]
  KvPool pool;
  int64_t layer, heads, block, slots, first, stop;
  float scale;
  const int32_t* chosen;
  float *m, *l, *acc;  // states [T][heads], [T][heads], [T][heads][head_dim]
  int64_t pages() const { return block / kPage; }
};

// Rows [begin, end) of one request, heads [head, head + together) of one KV head.
struct Item {
  const Part* part;
  const int32_t* pages;
  int64_t begin, end, head, together;
  int64_t vector(const Call& call, int64_t i) const { return (begin + i / together) * call.heads + head + i % together; }
};

// Some vectors over one block, `vectors` their places in the call; the first `group` of them are row 0 and so on.
void pass(const Call& call, const Item& item, int64_t b, const int64_t* vectors, int64_t count, int64_t group, int64_t position,
          int64_t pages, float* memory) {
  const int64_t hd = call.pool.head_dim(), kv = item.head / (call.heads / call.pool.kv_heads);
  float *q = memory, *acc = q + kTileVectors * hd, *widened = acc + kTileVectors * hd, *scores = widened + 2 * kPage * hd,
        *m = scores + kTileVectors * kPage, *l = m + kTileVectors;
  for (int64_t i = 0; i < count; ++i) std::copy_n(call.q + vectors[i] * hd, hd, q + i * hd);
  SegmentJob job{};
  job.q = q;
  job.vectors = static_cast<int>(count);
  job.group = static_cast<int>(group);
  job.head_dim = static_cast<int>(hd);
  job.first_position = position;
  job.pages = static_cast<int>(pages);
  job.blocks = item.pages + b * call.pages();
  job.keys = call.pool.base(call.layer, 0, kv);
  job.values = call.pool.base(call.layer, 1, kv);
  job.block_stride = call.pool.block_stride();
  job.scale = call.scale;
  job.scores = scores;
  job.widened = widened;
  job.m = m;
  job.l = l;
  job.acc = acc;
  const AttentionKernels& ops = attention_kernels();
  (call.pool.bf16 ? ops.segment_bf16 : ops.segment_float)(job);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t v = vectors[i];
    if (call.chosen[v * call.slots] == b) {
      call.m[v] = m[i], call.l[v] = l[i];
      std::copy_n(acc + i * hd, hd, call.acc + v * hd);
    } else {
      ops.fold(call.m + v, call.l + v, call.acc + v * hd, m + i, l + i, acc + i * hd, 1, static_cast<int>(hd));
    }
  }
}

// Answers how many keys and values the vectors read.
int64_t run(const Call& call, const Item& item) {
  const int64_t hd = call.pool.head_dim(), count = (item.end - item.begin) * item.together;
  const int64_t stop = std::min(call.stop, item.part->position(item.end - 1) / call.block + 1), blocks = stop - call.first;
  if (blocks <= 0) return 0;
  Scratch& s = scratch_of_thread();
  const int64_t room = 2 * kTileVectors * hd + 2 * kPage * hd + kTileVectors * (kPage + 2);
  s.memory.reserve(static_cast<size_t>(room));
  // Vectors by past block: counted, then listed in order.
  s.starts.assign(static_cast<size_t>(blocks + 1), 0);
  const auto each_past = [&](auto&& body) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t v = item.vector(call, i), own = item.part->position(item.begin + i / item.together) / call.block;
      for (int64_t slot = 0; slot < call.slots; ++slot) {
        const int64_t b = call.chosen[v * call.slots + slot];
        if (b >= call.first && b < stop && b < own) body(b - call.first, v);
      }
    }
  };
  each_past([&](int64_t b, int64_t) { ++s.starts[static_cast<size_t>(b + 1)]; });
  for (int64_t b = 0; b < blocks; ++b) s.starts[static_cast<size_t>(b + 1)] += s.starts[static_cast<size_t>(b)];
  s.places.resize(static_cast<size_t>(s.starts[static_cast<size_t>(blocks)]));
  each_past([&](int64_t b, int64_t v) { s.places[static_cast<size_t>(s.starts[static_cast<size_t>(b)]++)] = v; });
  int64_t read = 0, at = 0;
  for (int64_t b = call.first; b < stop; ++b) {
    for (const int64_t end = s.starts[static_cast<size_t>(b - call.first)]; at < end;) {
      const int64_t some = std::min(kTileVectors, end - at);
      pass(call, item, b, s.places.data() + at, some, 1, call.block, call.pages(), s.memory.data());
      read += some * 2 * call.block;
      at += some;
    }
    // Its own rows, of which each sees one key more than the one before it.
    const int64_t start = b * call.block, shift = item.part->end - item.part->context;
    const int64_t last = std::min(item.end, start + call.block + shift);
    for (int64_t row = std::max(item.begin, start + shift); row < last;) {
      const int64_t rows = std::min(last - row, kTileVectors / item.together), position = item.part->position(row) - start;
      int64_t mine[kTileVectors];
      for (int64_t i = 0; i < rows * item.together; ++i) mine[i] = item.vector(call, (row - item.begin) * item.together + i);
      const int64_t pages = (position + rows - 1) / kPage + 1;
      pass(call, item, b, mine, rows * item.together, item.together, position, pages, s.memory.data());
      for (int64_t i = 0; i < rows; ++i) read += item.together * 2 * kPage * ((position + i) / kPage + 1);
      row += rows;
    }
  }
  return read;
}

int64_t moba_attend(Array<const float, 3> q, PoolArray pool_array, int64_t layer, Array<const int32_t, 2> tables,
                    Array<const int32_t, 1> query_start, Array<const int32_t, 1> context_len, Array<const int32_t, 3> chosen,
                    int64_t block, int64_t first, int64_t stop, float scale, Array<float, 2> m, Array<float, 2> l,
                    Array<float, 3> acc) {
  const int64_t rows = extent(q, 0), heads = extent(q, 1), hd = extent(q, 2), slots = extent(chosen, 2);
  const Call call{q.data(), KvPool(pool_array), layer, heads,      block,    slots,   first,
                  stop,     scale,              chosen.data(), m.data(), l.data(), acc.data()};
  const std::vector<Part> parts = parts_of(query_start, context_len, rows);
  const int64_t width = extent(tables, 1);
  require(call.pool.head_dim() == hd, "q: head_dim differs from the pool's");
  require(call.pool.kv_heads > 0 && heads % call.pool.kv_heads == 0, "q: heads must be a multiple of the pool's kv_heads");
  require(layer >= 0 && layer < call.pool.layers, "layer: out of range");
  require(block > 0 && block % kPage == 0, "block: must be a positive multiple of 16");
  require(first >= 0, "first: must not be negative");
  require(extent(tables, 0) == static_cast<int64_t>(parts.size()), "block_tables: one row per request");
  require(extent(chosen, 0) == rows && extent(chosen, 1) == heads && slots > 0, "chosen: must be [T, heads, topk]");
  require(extent(m, 0) == rows && extent(m, 1) == heads && extent(l, 0) == rows && extent(l, 1) == heads, "m, l: must be [T, heads]");
  require(extent(acc, 0) == rows && extent(acc, 1) == heads && extent(acc, 2) == hd, "acc: must be [T, heads, head_dim]");
  std::vector<Item> items;
  const int64_t kv_heads = call.pool.kv_heads, tiles = (rows + kItemRows - 1) / kItemRows;
  const int64_t group = heads / kv_heads;
  const int64_t together = group <= kTileVectors && tiles * kv_heads >= kItemsPerThread * threads() ? group : 1;
  for (size_t r = 0; r < parts.size(); ++r) {
    const Part& part = parts[r];
    const int32_t* pages = tables.data() + static_cast<int64_t>(r) * width;
    const int64_t count = (part.context + kPage - 1) / kPage;
    require(count <= width, "block_tables: too few blocks for context_len");
    for (int64_t i = std::min(count, first * call.pages()); i < std::min(count, stop * call.pages()); ++i)
      require(pages[i] >= 0 && pages[i] < call.pool.blocks, "block_tables: block number out of range");
    for (int64_t v = part.begin * heads; v < part.end * heads; ++v) {
      const int32_t* mine = chosen.data() + v * slots;
      const int64_t own = part.position(v / heads) / block;
      int64_t slot = 0;
      while (slot < slots && mine[slot] >= (slot == 0 ? 0 : mine[slot - 1] + 1) && mine[slot] < own) ++slot;
      require(slot < slots && mine[slot] == own, "chosen: past blocks must ascend to a row's own");
      while (++slot < slots) require(mine[slot] == -1, "chosen: must be -1 behind a row's own block");
    }
    for (int64_t row = part.begin; row < part.end; row += kItemRows)
      for (int64_t head = 0; head < heads; head += together)
        items.push_back({&part, pages, row, std::min(part.end, row + kItemRows), head, together});
  }
  std::atomic<int64_t> read{0};
  parallel_for(static_cast<int64_t>(items.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) read += run(call, items[static_cast<size_t>(i)]);
  });
  return read;
}

// Mean key of one block, summed in order of position.
template <class T>
void mean_key(const T* keys, const KvPool& pool, const int32_t* pages, int64_t count, float* mean) {
  for (int64_t d = 0; d < pool.head_dim(); ++d) {
    float sum = 0;
    for (int64_t page = 0; page < count; ++page)
      for (int64_t j = 0; j < kPage; ++j) sum += widen(keys[pages[page] * pool.block_stride() + d * kPage + j]);
    mean[d] = sum / static_cast<float>(count * kPage);
  }
}

void moba_means(PoolArray pool_array, int64_t layer, Array<const int32_t, 1> pages, int64_t block,
                Array<float, 3> out) {
  const KvPool pool(pool_array);
  const int64_t hd = pool.head_dim(), each = block / kPage, blocks = extent(out, 1);
  require(layer >= 0 && layer < pool.layers, "layer: out of range");
  require(block > 0 && block % kPage == 0, "block: must be a positive multiple of 16");
  require(extent(pages, 0) == blocks * each, "pages: must be whole blocks");
  require(extent(out, 0) == pool.kv_heads && extent(out, 2) == hd, "out: must be [kv_heads, blocks, head_dim]");
  for (int64_t i = 0; i < blocks * each; ++i)
    require(pages.data()[i] >= 0 && pages.data()[i] < pool.blocks, "pages: block number out of range");
  parallel_for(pool.kv_heads * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks;
      const int32_t* first = pages.data() + i % blocks * each;
      const char* keys = pool.base(layer, 0, head);
      float* mean = out.data() + i * hd;
      if (pool.bf16)
        mean_key(reinterpret_cast<const uint16_t*>(keys), pool, first, each, mean);
      else
        mean_key(reinterpret_cast<const float*>(keys), pool, first, each, mean);
    }
  });
}

}  // namespace
}  // namespace statepool

void bind_moba(nb::module_& m) {
  using namespace statepool;
  m.def("moba_choose", &moba_choose, "q"_a.noconvert(), "query_start"_a.noconvert(), "context_len"_a.noconvert(), "means"_a,
        "block"_a, "chosen"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "Blocks that each vector of q [T, heads, hd] reads, ascending, into chosen int32 [T, heads, topk]: its own and the past "
        "ones with the best mean key; -1 behind. Answers how many means were read.");
  m.def("moba_attend", &moba_attend, "q"_a.noconvert(), "pool"_a.noconvert(), "layer"_a, "block_tables"_a.noconvert(),
        "query_start"_a.noconvert(), "context_len"_a.noconvert(), "chosen"_a.noconvert(), "block"_a, "first"_a, "stop"_a, "scale"_a,
        "m"_a.noconvert(), "l"_a.noconvert(), "acc"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "Attention to the chosen blocks first .. stop, folded into m, l [T, heads] and acc [T, heads, hd], which a vector's first "
        "block sets. Answers how many keys and values were read.");
  m.def("moba_means", &moba_means, "pool"_a.noconvert(), "layer"_a, "pages"_a.noconvert(), "block"_a,
        "out"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(), "Mean keys float32 [kv_heads, blocks, hd] of whole blocks.");
}
