// MoBA over the paged pool: a query vector attends to its own block and to the past blocks with the best mean keys.
//
// A vector is computed alone, block after block in order of position, so prefill, chunks and decode give equal bits.
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

// One request's rows.
struct Part {
  int64_t begin, end, context;
  const int32_t* pages;
  const float* means;  // [kv_heads][blocks][head_dim]
  int64_t blocks;
};

struct Scratch {
  Buffer<float> memory;
  std::vector<int32_t> order;
};

Scratch& scratch_of_thread() {
  static thread_local Scratch one;
  return one;
}

struct Call {
  KvPool pool;
  int64_t layer, heads, block, topk;
  float scale;
  int64_t group() const { return heads / pool.kv_heads; }
};

// The blocks a vector at block `current` reads, ascending, itself last; answers how many means it took to choose.
int64_t choose(const Call& call, const Part& part, int64_t kv_head, const float* q, int64_t current, float* scores,
            std::vector<int32_t>& chosen) {
  const int64_t hd = call.pool.head_dim(), wanted = std::min(call.topk - 1, current);
  chosen.clear();
  if (wanted < current) {
    const float* means = part.means + kv_head * part.blocks * hd;
    wave_kernels().dot_float(q, 1, means, means, current, static_cast<int>(hd), 1.0f, scores, current);
    for (int32_t i = 0; i < current; ++i) {
      // Not a number is no order: such a block comes last, as one that nobody likes.
      if (!(scores[i] == scores[i])) scores[i] = -std::numeric_limits<float>::infinity();
      chosen.push_back(i);
    }
    const auto better = [&](int32_t a, int32_t b) {
      return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    };
    std::nth_element(chosen.begin(), chosen.begin() + wanted, chosen.end(), better);
    chosen.resize(static_cast<size_t>(wanted));
    std::sort(chosen.begin(), chosen.end());
  } else {
    for (int32_t i = 0; i < current; ++i) chosen.push_back(i);
  }
  chosen.push_back(static_cast<int32_t>(current));
  return wanted < current ? current : 0;
}

// Answers how many rows of head_dim numbers it read: means, keys and values.
int64_t run_vector(const Call& call, const Part& part, int64_t position, int64_t kv_head, const float* q, float* out) {
  const int64_t hd = call.pool.head_dim(), current = position / call.block, pages = call.block / kPage;
  Scratch& s = scratch_of_thread();
  s.memory.reserve(static_cast<size_t>(2 * hd + 4 + kPage + 2 * kPage * hd + current));
  float *acc = s.memory.data(), *acc2 = acc + hd, *m = acc2 + hd, *scores = m + 4, *widened = scores + kPage,
        *gate = widened + 2 * kPage * hd;
  int64_t read = choose(call, part, kv_head, q, current, gate, s.order);
  SegmentJob job{};
  job.q = q;
  job.vectors = job.group = 1;
  job.head_dim = static_cast<int>(hd);
  job.keys = call.pool.base(call.layer, 0, kv_head);
  job.values = call.pool.base(call.layer, 1, kv_head);
  job.block_stride = call.pool.block_stride();
  job.scale = call.scale;
  job.scores = scores;
  job.widened = widened;
  const AttentionKernels& ops = attention_kernels();
  bool first = true;
  for (const int32_t block : s.order) {
    job.first_position = position - block * call.block;
    const int64_t seen = std::min(job.first_position + 1, call.block);
    job.pages = static_cast<int>(std::min((seen + kPage - 1) / kPage, pages));
    job.blocks = part.pages + block * pages;
    read += 2 * job.pages * kPage;
    job.m = first ? m : m + 2;
    job.l = first ? m + 1 : m + 3;
    job.acc = first ? acc : acc2;
    (call.pool.bf16 ? ops.segment_bf16 : ops.segment_float)(job);
    if (!first) ops.fold(m, m + 1, acc, m + 2, m + 3, acc2, 1, static_cast<int>(hd));
    first = false;
  }
  ops.finish(acc, m[1], out, static_cast<int>(hd));
  return read;
}

using Means = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

int64_t moba(Array<const float, 3> q, PoolArray pool_array, int64_t layer, Array<const int32_t, 2> tables,
          Array<const int32_t, 1> query_start, Array<const int32_t, 1> context_len, std::vector<Means> means,
          int64_t block, int64_t topk, float scale, Array<float, 2> out) {
  Call call{KvPool(pool_array), layer, extent(q, 1), block, topk, scale};
  const int64_t requests = extent(context_len, 0), width = extent(tables, 1), hd = extent(q, 2), rows = extent(q, 0);
  require(call.pool.head_dim() == hd, "q: head_dim differs from the pool's");
  require(call.pool.kv_heads > 0 && call.heads % call.pool.kv_heads == 0,
          "q: heads must be a multiple of the pool's kv_heads");
  require(layer >= 0 && layer < call.pool.layers, "layer: out of range");
  require(block > 0 && block % kPage == 0, "block: must be a positive multiple of 16");
  require(topk > 0, "topk: must be positive");
  require(extent(tables, 0) == requests && static_cast<int64_t>(means.size()) == requests,
          "block_tables, means: one per request");
  require(extent(query_start, 0) == requests + 1 && query_start.data()[0] == 0 && query_start.data()[requests] == rows,
          "query_start: must go from 0 to the rows of q");
  require(extent(out, 0) == rows && extent(out, 1) == call.heads * hd, "out: must be [T, heads * head_dim]");
  std::vector<Part> parts;
  std::vector<int32_t> owner(static_cast<size_t>(rows));
  for (int64_t r = 0; r < requests; ++r) {
    const Means& mean = means[static_cast<size_t>(r)];
    const Part part{query_start.data()[r], query_start.data()[r + 1], context_len.data()[r], tables.data() + r * width,
                    mean.data(), extent(mean, 1)};
    require(part.begin <= part.end && part.end - part.begin <= part.context,
            "context_len: must count the rows of this call too");
    const int64_t pages = (part.context + kPage - 1) / kPage;
    require(pages <= width, "block_tables: too few blocks for context_len");
    for (int64_t i = 0; i < pages; ++i)
      require(part.pages[i] >= 0 && part.pages[i] < call.pool.blocks, "block_tables: block number out of range");
    require(extent(mean, 0) == call.pool.kv_heads && extent(mean, 2) == hd, "means: must be [kv_heads, blocks, head_dim]");
    require(part.blocks >= (part.context - 1) / block, "means: too few blocks for context_len");
    for (int64_t row = part.begin; row < part.end; ++row) owner[static_cast<size_t>(row)] = static_cast<int32_t>(r);
    parts.push_back(part);
  }
  std::atomic<int64_t> read{0};
  parallel_for(rows * call.heads, 4, [&](int64_t begin, int64_t end) {
    int64_t mine = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / call.heads, head = i % call.heads;
      const Part& part = parts[static_cast<size_t>(owner[static_cast<size_t>(row)])];
      const int64_t position = part.context - (part.end - row);
      mine += run_vector(call, part, position, head / call.group(), q.data() + i * hd, out.data() + i * hd);
    }
    read += mine;
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
  m.def("moba", &moba, "q"_a.noconvert(), "pool"_a.noconvert(), "layer"_a, "block_tables"_a.noconvert(),
        "query_start"_a.noconvert(), "context_len"_a.noconvert(), "means"_a, "block"_a, "topk"_a, "scale"_a,
        "out"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "Block attention of q [T, heads, hd]: the own block and the topk - 1 past ones with the best mean key. Answers how "
        "many rows of hd numbers were read: means, keys and values.");
  m.def("moba_means", &moba_means, "pool"_a.noconvert(), "layer"_a, "pages"_a.noconvert(), "block"_a,
        "out"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(), "Mean keys float32 [kv_heads, blocks, hd] of whole blocks.");
}
