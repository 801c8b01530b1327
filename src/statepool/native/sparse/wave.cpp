// Tripartite decode over the segments of one context: clusters read whole, clusters estimated, the rest left out.
#include "wave.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "../arrays.h"
#include "../memory.h"
#include "../pool.h"
#include "cluster_cache.h"
#include "stored.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool {
namespace {

struct Segment {
  Stored<4> centroids;
  std::optional<Stored<4>> variances;
  Stored<3> means, rows;
  Array<const int32_t, 2> offsets;
  Array<const float, 2> log_size, spread;
  std::shared_ptr<StoredRows> stored;  // then `rows` holds the first offsets[0] tokens alone
  std::vector<int64_t> filled;         // clusters of each head that are not empty
  int64_t clusters() const { return extent(means, 1); }
};

// Rows that follow each other: those of a cluster, or of a page of one in a file.
struct Run {
  const char *keys, *values;
  int64_t count;
  bool late = false;  // still to be read from the file
};

struct Scratch {
  Buffer<float> scores, biased, weights, rank, exact, squares;
  Buffer<uint32_t> keys, some, room;
  Buffer<int32_t> chosen, best;  // clusters that are read or estimated; which of these are read
  int64_t chosen_count = 0, best_count = 0;
  Buffer<int32_t> estimated;
  Buffer<float> log_sizes;
  Buffer<const void*> means, row_keys, row_values;  // addresses; behind the values of rows come the means again
  std::vector<Run> runs;
  int64_t exact_rows = 0;

  int64_t estimates() const { return chosen_count - best_count; }
};

Scratch& scratch_of_thread() {
  static thread_local Scratch one;
  return one;
}

struct Query {
  const float* q;
  int64_t heads, retrieve, estimate;
  float scale;
  bool mass;
  int order;  // 0: the mean alone, 1: one variance per cluster, 2: one per dimension
  const char* tail;
  int64_t tail_rows;
  float *m, *l, *acc, *x;
  int32_t* ids;
};

class WaveIndex {
 public:
  WaveIndex(int64_t kv_heads, int64_t head_dim, bool bf16) : kv_heads_(kv_heads), head_dim_(head_dim), bf16_(bf16) {
    require(kv_heads > 0, "kv_heads: must be positive");
    require(head_dim > 0 && head_dim % 16 == 0, "head_dim: must be a multiple of 16");
  }

  void push(Stored<4> centroids, std::optional<Stored<4>> variances, Stored<3> means, Stored<3> rows,
            Array<const int32_t, 2> offsets, Array<const float, 2> log_size, Array<const float, 2> spread,
            std::shared_ptr<StoredRows> stored) {
    const int64_t clusters = extent(means, 1), tokens = extent(rows, 1) / 2;
    require(is_bf16(centroids, "centroids: must be uint16 or float32") == bf16_ &&
                is_bf16(means, "means: must be uint16 or float32") == bf16_ &&
                is_bf16(rows, "rows: must be uint16 or float32") == bf16_,
            "segment: differs from the index in dtype");
    require(clusters > 0 && clusters % 16 == 0, "means: clusters must be a multiple of 16");
    require(extent(centroids, 0) == kv_heads_ && extent(centroids, 1) * 16 == clusters && extent(centroids, 2) == head_dim_ &&
                extent(centroids, 3) == 16,
            "centroids: must be [kv_heads, clusters / 16, head_dim, 16]");
    if (variances) {
      require(is_bf16(*variances, "variances: must be uint16 or float32") == bf16_, "variances: differ in dtype");
      for (size_t axis = 0; axis < 4; ++axis)
        require(variances->shape(axis) == centroids.shape(axis), "variances: must have the shape of centroids");
    }
    require(extent(means, 0) == kv_heads_ && extent(means, 2) == head_dim_, "means: must be [kv_heads, clusters, head_dim]");
    require(extent(rows, 0) == kv_heads_ && extent(rows, 1) % 2 == 0 && extent(rows, 2) == head_dim_,
            "rows: must be [kv_heads, 2 * tokens, head_dim]");
    require(extent(offsets, 0) == kv_heads_ && extent(offsets, 1) == clusters + 1, "offsets: must be [kv_heads, clusters + 1]");
    for (const auto* each : {&log_size, &spread})
      require(extent(*each, 0) == kv_heads_ && extent(*each, 1) == clusters, "log_size, spread: must be [kv_heads, clusters]");
    std::vector<int64_t> filled(static_cast<size_t>(kv_heads_), 0);
    for (int64_t h = 0; h < kv_heads_; ++h) {
      const int32_t* at = offsets.data() + h * (clusters + 1);
      require(at[0] >= 0 && (stored ? at[0] : at[clusters]) <= tokens, "offsets: lie outside of rows");
      for (int64_t c = 0; c < clusters; ++c) {
        require(at[c] <= at[c + 1], "offsets: must not decrease");
        const bool some = at[c] < at[c + 1];
        require(some == (log_size.data()[h * clusters + c] > -std::numeric_limits<float>::infinity()),
                "log_size: must be -inf for empty clusters and for no others");
        filled[static_cast<size_t>(h)] += some;
      }
    }
    if (stored) {
      require(stored->heads() == kv_heads_ && stored->clusters() == clusters, "stored: must have the segment's heads and clusters");
      require(stored->cache()->row_bytes() == head_dim_ * item(), "stored: rows differ in size");
      require(segments_.empty() || cache_ == stored->cache().get(), "stored: all segments must share one cache");
      for (int64_t h = 0; h < kv_heads_; ++h)
        for (int64_t c = 0; c < clusters; ++c) {
          const int32_t* at = offsets.data() + h * (clusters + 1) + c;
          require(stored->slot(h, c).rows == at[1] - at[0], "stored: clusters differ in size");
        }
    }
    require(segments_.empty() || (cache_ != nullptr) == (stored != nullptr), "stored: all segments or none");
    cache_ = stored ? stored->cache().get() : nullptr;
    segments_.push_back({std::move(centroids), std::move(variances), std::move(means), std::move(rows), std::move(offsets),
                         std::move(log_size), std::move(spread), std::move(stored), std::move(filled)});
    clusters_ += clusters;
  }

  void cut(int64_t count) {
    require(count >= 0 && count <= static_cast<int64_t>(segments_.size()), "count: there are not so many segments");
    while (static_cast<int64_t>(segments_.size()) > count) {
      clusters_ -= segments_.back().clusters();
      segments_.pop_back();
    }
    if (segments_.empty()) cache_ = nullptr;
  }

  int64_t clusters() const { return clusters_; }
  int64_t segments() const { return static_cast<int64_t>(segments_.size()); }

  void decode(Array<const float, 2> q, int64_t retrieve, int64_t estimate, float scale, bool mass, int order,
              Array<float, 1> m, Array<float, 1> l, Array<float, 2> acc, std::optional<Stored<4>> tail,
              std::optional<Array<int32_t, 2>> ids, std::optional<Array<float, 2>> scores) const {
    Query query{q.data(), extent(q, 0), retrieve, estimate, scale, mass, order, nullptr, 0, m.data(), l.data(), acc.data(),
                nullptr, nullptr};
    require(extent(q, 1) == head_dim_ && query.heads > 0 && query.heads % kv_heads_ == 0,
            "q: must be [heads, head_dim], heads a multiple of kv_heads");
    require(retrieve >= 0 && estimate >= 0, "retrieve, estimate: must not be negative");
    require(order >= 0 && order <= 2, "order: must be 0, 1 or 2");
    require(extent(m, 0) == query.heads && extent(l, 0) == query.heads, "m, l: must be [heads]");
    require(extent(acc, 0) == query.heads && extent(acc, 1) == head_dim_, "acc: must be [heads, head_dim]");
    if (order == 2)
      for (const Segment& segment : segments_) require(segment.variances.has_value(), "order: a segment has no variances");
    if (tail) {
      require(is_bf16(*tail, "tail: must be uint16 or float32") == bf16_, "tail: differs from the index in dtype");
      require(extent(*tail, 0) == kv_heads_ && extent(*tail, 1) == 2 && extent(*tail, 3) == head_dim_,
              "tail: must be [kv_heads, 2, tokens, head_dim]");
      query.tail = static_cast<const char*>(tail->data());
      query.tail_rows = extent(*tail, 2);
    }
    if (ids) {
      require(extent(*ids, 0) == kv_heads_ && extent(*ids, 1) == clusters_, "ids: must be [kv_heads, clusters]");
      query.ids = ids->data();
    }
    if (scores) {
      require(extent(*scores, 0) == query.heads && extent(*scores, 1) == clusters_, "scores: must be [heads, clusters]");
      query.x = scores->data();
    }
    if (cache_ != nullptr) {
      decode_from_file(query);
      return;
    }
    parallel_for(kv_heads_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) {
        Scratch& s = scratch_of_thread();
        select(query, head, s, nullptr);
        score(query, head, s, false);
        attend(query, head, s);
      }
    });
  }

 private:
  int64_t item() const { return bf16_ ? 2 : 4; }

  // Estimated logits of every cluster, for every vector of the group.
  void scan(const Query& query, int64_t head, int64_t group, Scratch& s) const {
    const WaveKernels& ops = wave_kernels();
    const int hd = static_cast<int>(head_dim_);
    const float* q = query.q + head * group * head_dim_;
    float* squares = s.squares.data();
    std::vector<double> lengths(static_cast<size_t>(group), 0.0);  // squared, in the scale of the scores
    for (int64_t v = 0; v < group; ++v)
      for (int64_t d = 0; d < head_dim_; ++d) {
        const double x = static_cast<double>(query.scale) * static_cast<double>(q[v * head_dim_ + d]);
        lengths[static_cast<size_t>(v)] += x * x;
        squares[v * head_dim_ + d] = static_cast<float>(x * x);
      }
    int64_t at = 0;
    for (const Segment& segment : segments_) {
      const int64_t clusters = segment.clusters(), skip = head * clusters * head_dim_ * item();
      const char* tiles = static_cast<const char*>(segment.centroids.data()) + skip;
      const auto run = bf16_ ? ops.scan_bf16 : ops.scan_float;
      run(q, static_cast<int>(group), tiles, clusters / 16, hd, query.scale, s.scores.data() + at, clusters_);
      const float* log_size = segment.log_size.data() + head * clusters;
      if (query.order == 2) {
        const char* variances = static_cast<const char*>(segment.variances->data()) + skip;
        run(squares, static_cast<int>(group), variances, clusters / 16, hd, 1.0f, s.weights.data(), clusters);
      }
      for (int64_t v = 0; v < group && query.order > 0; ++v) {
        const float* variances = query.order == 2 ? s.weights.data() + v * clusters : segment.spread.data() + head * clusters;
        const float factor = query.order == 2 ? 1.0f : static_cast<float>(lengths[static_cast<size_t>(v)]);
        ops.add_variance(variances, log_size, factor, clusters, s.scores.data() + v * clusters_ + at);
      }
      for (int64_t v = 0; v < group; ++v)
        ops.add_size(s.scores.data() + v * clusters_ + at, log_size, query.mass, clusters,
                     s.biased.data() + v * clusters_ + at);
      at += clusters;
    }
  }

  // Which clusters are read, which estimated: the best by the sum of the group's softmaxes, ties to the first.
  void choose(const Query& query, int64_t head, int64_t group, Scratch& s) const {
    const WaveKernels& ops = wave_kernels();
    std::fill_n(s.rank.data(), clusters_, 0.0f);
    for (int64_t v = 0; v < group; ++v)
      ops.add_softmax(s.biased.data() + v * clusters_, clusters_, s.weights.data(), s.rank.data());
    int64_t at = 0, filled = 0;
    for (const Segment& segment : segments_) {
      const int64_t clusters = segment.clusters();
      ops.keys_of(s.rank.data() + at, segment.log_size.data() + head * clusters, clusters, s.keys.data() + at);
      filled += segment.filled[static_cast<size_t>(head)];
      at += clusters;
    }
    s.chosen_count = take(s.keys.data(), clusters_, std::min(query.retrieve + query.estimate, filled), s, s.chosen.data());
    for (int64_t i = 0; i < s.chosen_count; ++i) s.some.data()[i] = s.keys.data()[s.chosen.data()[i]];
    s.best_count = take(s.some.data(), s.chosen_count, std::min(query.retrieve, filled), s, s.best.data());
    if (query.ids == nullptr) return;
    int32_t* zones = query.ids + head * clusters_;
    std::fill_n(zones, clusters_, 0);
    for (int64_t i = 0; i < s.chosen_count; ++i) zones[s.chosen.data()[i]] = 1;
    for (int64_t i = 0; i < s.best_count; ++i) zones[s.chosen.data()[s.best.data()[i]]] = 2;
  }

  // The places of the `count` largest of n keys, in order; of equal ones the first.
  static int64_t take(const uint32_t* keys, int64_t n, int64_t count, Scratch& s, int32_t* places) {
    if (count <= 0) return 0;
    int64_t above = 0;
    const uint32_t least = wave_kernels().kth_largest(keys, n, count, s.room.data(), &above);
    const int64_t found = wave_kernels().at_least(keys, n, least, places);
    if (found == count) return count;
    int64_t ties = count - above, kept = 0;
    for (int64_t i = 0; i < found; ++i)
      if (keys[places[i]] > least || ties-- > 0) places[kept++] = places[i];
    return kept;
  }

  // As above, but the heads' reads are all under way before the first head needs its rows.
  void decode_from_file(const Query& query) const {
    static thread_local std::vector<Scratch> scratches;
    static thread_local std::vector<Wanted> wanted;
    auto& each = scratches;
    auto& wants = wanted;
    each.resize(std::max(each.size(), static_cast<size_t>(kv_heads_)));
    wants.resize(static_cast<size_t>(kv_heads_));
    const auto lock = cache_->open(static_cast<size_t>(kv_heads_));
    parallel_for(kv_heads_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) {
        const auto at = static_cast<size_t>(head);
        wants[at].slots.clear();
        wants[at].misses.clear();
        select(query, head, each[at], &wants[at]);
        cache_->fetch(at, wants[at]);
        score(query, head, each[at], false);
      }
    });
    parallel_for(kv_heads_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) {
        const auto at = static_cast<size_t>(head);
        for (const Miss& miss : wants[at].misses) {
          const char* page = miss.from;
          for (size_t run = miss.run; page < miss.from + pages_of(miss.slot->rows) * cache_->page_bytes(); ++run) {
            each[at].runs[run].keys = page;
            each[at].runs[run].values = page + kPageRows * head_dim_ * item();
            page += cache_->page_bytes();
          }
        }
        list_rows(query, each[at]);
        cache_->wait(head);
        score(query, head, each[at], true);
        attend(query, head, each[at]);
      }
    });
    cache_->finish(wants);
  }

  static int64_t pages_of(int64_t rows) { return (rows + kPageRows - 1) / kPageRows; }

  // The runs of a stored cluster; those of a miss get their addresses later.
  void add_stored(Slot& slot, Scratch& s, Wanted& wanted) const {
    wanted.slots.push_back(&slot);
    if (slot.page < 0) wanted.misses.push_back({&slot, s.runs.size(), nullptr});
    int32_t page = slot.page;
    for (int64_t left = slot.rows; left > 0; left -= kPageRows) {
      const char* at = page < 0 ? nullptr : cache_->page(page);
      s.runs.push_back({at, at ? at + kPageRows * head_dim_ * item() : nullptr, std::min(left, kPageRows), at == nullptr});
      if (page >= 0) page = cache_->next(page);
    }
  }

  // Turns what was chosen into runs of rows and a list of means, in order of position; tells how many rows there are.
  int64_t collect(const Query& query, int64_t head, Scratch& s, Wanted* wanted) const {
    const int64_t row = head_dim_ * item();
    s.runs.clear();
    s.best.data()[s.best_count] = -1;
    int64_t at = 0, rows = 0, next = 0, read = 0, marked = 0, estimated = 0;
    for (const Segment& segment : segments_) {
      const int64_t clusters = segment.clusters();
      const int32_t* offsets = segment.offsets.data() + head * (clusters + 1);
      const char* first = static_cast<const char*>(segment.rows.data()) + head * extent(segment.rows, 1) * row;
      const char* means = static_cast<const char*>(segment.means.data()) + head * clusters * row;
      const float* log_size = segment.log_size.data() + head * clusters;
      if (offsets[0] > 0) s.runs.push_back({first, first + offsets[0] * row, offsets[0]});
      rows += offsets[0];
      // Their borders are in no cache: nothing between these reads hinders the next one.
      for (; read < s.best_count; ++read) {
        const int64_t c = s.chosen.data()[s.best.data()[read]] - at;
        if (c >= clusters) break;
        const int32_t begin = offsets[c], end = offsets[c + 1];
        if (wanted != nullptr)
          add_stored(segment.stored->slot(head, c), s, *wanted);
        else
          s.runs.push_back({first + 2 * begin * row, first + (begin + end) * row, end - begin});
        rows += end - begin;
      }
      for (; next < s.chosen_count && s.chosen.data()[next] < at + clusters; ++next) {
        const int64_t c = s.chosen.data()[next] - at;
        s.estimated.data()[estimated] = static_cast<int32_t>(at + c);
        s.means.data()[estimated] = means + c * row;
        s.log_sizes.data()[estimated] = log_size[c];
        const bool whole = s.best.data()[marked] == next;
        marked += whole;
        estimated += !whole;
      }
      at += clusters;
    }
    if (query.tail_rows > 0) {
      const char* tail = query.tail + head * 2 * query.tail_rows * row;
      s.runs.push_back({tail, tail + query.tail_rows * row, query.tail_rows});
    }
    return rows + query.tail_rows;
  }

  // Addresses of all rows and means, and behind the last one what is only fetched.
  void list_rows(const Query& query, Scratch& s) const {
    const int64_t row = head_dim_ * item(), estimated = s.estimates();
    s.row_keys.reserve(static_cast<size_t>(s.exact_rows + kRowsAhead));
    s.row_values.reserve(static_cast<size_t>(s.exact_rows + estimated + kRowsAhead));
    const void **keys = s.row_keys.data(), **values = s.row_values.data();
    for (const Run& run : s.runs) {
      const bool there = run.keys != nullptr;
      for (int64_t i = 0; i < run.count; ++i) {
        *keys++ = there ? run.keys + i * row : static_cast<const void*>(query.q);
        *values++ = there ? run.values + i * row : static_cast<const void*>(query.q);
      }
    }
    values = std::copy_n(s.means.data(), estimated, values);
    std::fill_n(keys, kRowsAhead, s.exact_rows > 0 ? keys[-1] : query.q);
    std::fill_n(values, kRowsAhead, s.exact_rows + estimated > 0 ? values[-1] : query.q);
  }

  void select(const Query& query, int64_t head, Scratch& s, Wanted* wanted) const {
    const int64_t group = query.heads / kv_heads_;
    s.scores.reserve(static_cast<size_t>(group * clusters_));
    s.biased.reserve(static_cast<size_t>(group * clusters_));
    s.weights.reserve(static_cast<size_t>(group * clusters_));
    s.rank.reserve(static_cast<size_t>(clusters_));
    for (auto* keys : {&s.keys, &s.some, &s.room}) keys->reserve(static_cast<size_t>(clusters_ + 16));
    for (auto* places : {&s.chosen, &s.best, &s.estimated}) places->reserve(static_cast<size_t>(clusters_ + 16));
    s.log_sizes.reserve(static_cast<size_t>(clusters_ + 1));
    s.means.reserve(static_cast<size_t>(clusters_ + 1));
    s.chosen_count = s.best_count = 0;
    s.squares.reserve(static_cast<size_t>(group * head_dim_));
    if (clusters_ > 0) {
      scan(query, head, group, s);
      if (query.x) std::copy_n(s.scores.data(), group * clusters_, query.x + head * group * clusters_);
      choose(query, head, group, s);
    }
    if (wanted != nullptr) cache_->settle();
    s.exact_rows = collect(query, head, s, wanted);
    list_rows(query, s);
  }

  int64_t stride_of(const Scratch& s) const { return (s.exact_rows + s.estimates() + 15) / 16 * 16; }

  // Scores of the rows that are there, or of those that came late: each has its place, so the order is free.
  void score(const Query& query, int64_t head, Scratch& s, bool late) const {
    const int64_t group = query.heads / kv_heads_, stride = stride_of(s);
    s.exact.reserve(static_cast<size_t>(group * stride));
    const auto dot = bf16_ ? wave_kernels().dot_bf16 : wave_kernels().dot_float;
    const float* q = query.q + head * group * head_dim_;
    int64_t at = 0;
    for (size_t i = 0; i < s.runs.size();) {
      const bool skip = s.runs[i].late != late;
      const int64_t first = at;
      for (; i < s.runs.size() && (s.runs[i].late != late) == skip; ++i) at += s.runs[i].count;
      if (skip) continue;
      dot(q, static_cast<int>(group), s.row_keys.data() + first, at - first, static_cast<int>(head_dim_), query.scale,
          s.exact.data() + first, stride);
    }
  }

  void attend(const Query& query, int64_t head, Scratch& s) const {
    const WaveKernels& ops = wave_kernels();
    const int64_t group = query.heads / kv_heads_, exact = s.exact_rows;
    const int hd = static_cast<int>(head_dim_), vectors = static_cast<int>(group);
    const int64_t estimated = s.estimates(), all = exact + estimated, stride = stride_of(s);
    float* p = s.exact.data();
    for (int64_t v = 0; v < group; ++v) {
      const float* scores = s.scores.data() + v * clusters_;
      float* estimates = p + v * stride + exact;
      for (int64_t i = 0; i < estimated; ++i) estimates[i] = scores[s.estimated.data()[i]] + s.log_sizes.data()[i];
      const int64_t to = head * group + v;
      query.m[to] = -std::numeric_limits<float>::infinity();
      query.l[to] = all > 0 ? ops.soften(p + v * stride, all, query.m + to) : 0.0f;
    }
    float* acc = query.acc + head * group * head_dim_;
    std::fill_n(acc, group * head_dim_, 0.0f);
    const auto weigh = bf16_ ? ops.weigh_bf16 : ops.weigh_float;
    weigh(p, stride, vectors, s.row_values.data(), all, hd, acc);
  }

  int64_t kv_heads_, head_dim_, clusters_ = 0;
  bool bf16_;
  ClusterCache* cache_ = nullptr;  // of all segments, which keep it alive
  std::vector<Segment> segments_;
};

}  // namespace
}  // namespace statepool

void bind_wave(nb::module_& m) {
  using namespace statepool;
  nb::class_<WaveIndex>(m, "WaveIndex", "Segments of one context and one layer, in order.")
      .def(nb::init<int64_t, int64_t, bool>(), "kv_heads"_a, "head_dim"_a, "bf16"_a)
      .def("push", &WaveIndex::push, "centroids"_a.noconvert(), "variances"_a.noconvert().none(), "means"_a.noconvert(),
           "rows"_a.noconvert(), "offsets"_a.noconvert(), "log_size"_a.noconvert(), "spread"_a.noconvert(),
           "stored"_a.none() = nb::none(),
           "Add a segment behind the others; its arrays are kept, not copied.")
      .def("cut", &WaveIndex::cut, "count"_a, "Keep the first `count` segments.")
      .def_prop_ro("clusters", &WaveIndex::clusters)
      .def_prop_ro("segments", &WaveIndex::segments)
      .def("decode", &WaveIndex::decode, "q"_a.noconvert(), "retrieve"_a, "estimate"_a, "scale"_a, "mass"_a, "order"_a,
           "m"_a.noconvert(), "l"_a.noconvert(), "acc"_a.noconvert(), "tail"_a.noconvert() = nb::none(),
           "ids"_a.noconvert() = nb::none(), "scores"_a.noconvert() = nb::none(), nb::call_guard<nb::gil_scoped_release>(),
           "Un-normalised attention of q [heads, head_dim]: m, l [heads], acc [heads, head_dim].");
}
