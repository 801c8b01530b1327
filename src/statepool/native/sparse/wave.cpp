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
  int64_t clusters() const { return extent(means, 1); }
};

// Bits of a float that is not negative: they sort as the float does.
uint32_t key_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The k-th largest of n keys (1 <= k <= n): a histogram of the leading bits, then a choice within one bucket.
// `above` becomes how many are larger.
uint32_t kth_largest(const uint32_t* keys, int64_t n, int64_t k, std::vector<uint32_t>& bucket, int64_t* above) {
  constexpr int kShift = 20, kBuckets = 4096;
  int32_t histogram[kBuckets] = {};
  for (int64_t i = 0; i < n; ++i) ++histogram[keys[i] >> kShift];
  int64_t larger = 0;
  uint32_t at = kBuckets - 1;
  while (larger + histogram[at] < k) larger += histogram[at--];
  bucket.resize(static_cast<size_t>(n));
  size_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    bucket[count] = keys[i];
    count += keys[i] >> kShift == at;
  }
  const auto wanted = bucket.begin() + (k - larger - 1), end = bucket.begin() + static_cast<int64_t>(count);
  std::nth_element(bucket.begin(), wanted, end, std::greater<>());
  *above = larger + std::count_if(bucket.begin(), end, [&](uint32_t key) { return key > *wanted; });
  return *wanted;
}

struct Run {
  const char *keys, *values;
  int64_t count;
  bool late = false;  // still to be read from the file
};

struct Scratch {
  Buffer<float> scores, biased, weights, rank, exact, squares;
  std::vector<uint32_t> keys, bucket;
  std::vector<Run> runs;
  std::vector<const void*> means;
  std::vector<float> log_sizes;
  std::vector<int32_t> zones, read, estimated;
  int64_t exact_rows = 0;
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
    for (int64_t h = 0; h < kv_heads_; ++h) {
      const int32_t* at = offsets.data() + h * (clusters + 1);
      require(at[0] >= 0 && (stored ? at[0] : at[clusters]) <= tokens, "offsets: lie outside of rows");
      for (int64_t c = 0; c < clusters; ++c) require(at[c] <= at[c + 1], "offsets: must not decrease");
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
                         std::move(log_size), std::move(spread), std::move(stored)});
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

  // Which clusters are read (zone 2), which estimated (1): the best by the sum of the group's softmaxes, ties to the first.
  void choose(const Query& query, int64_t head, int64_t group, Scratch& s) const {
    std::fill_n(s.rank.data(), clusters_, 0.0f);
    for (int64_t v = 0; v < group; ++v)
      wave_kernels().add_softmax(s.biased.data() + v * clusters_, clusters_, s.weights.data(), s.rank.data());
    s.keys.resize(static_cast<size_t>(clusters_));
    s.zones.resize(static_cast<size_t>(clusters_));
    int64_t at = 0, filled = 0;
    for (const Segment& segment : segments_) {
      const int32_t* offsets = segment.offsets.data() + head * (segment.clusters() + 1);
      for (int64_t c = 0; c < segment.clusters(); ++c, ++at) {
        const uint32_t some = offsets[c] < offsets[c + 1];
        s.keys[static_cast<size_t>(at)] = some * (key_of(s.rank.data()[at]) + 1);
        filled += some;
      }
    }
    std::fill(s.zones.begin(), s.zones.end(), 0);
    raise_best(std::min(query.retrieve + query.estimate, filled), s);
    raise_best(std::min(query.retrieve, filled), s);
    if (query.ids) std::copy_n(s.zones.data(), clusters_, query.ids + head * clusters_);
  }

  // Adds 1 to the zone of the `count` largest keys.
  void raise_best(int64_t count, Scratch& s) const {
    if (count <= 0) return;
    int64_t above = 0;
    const uint32_t least = kth_largest(s.keys.data(), clusters_, count, s.bucket, &above);
    for (size_t c = 0; c < static_cast<size_t>(clusters_); ++c) s.zones[c] += s.keys[c] > least;
    for (size_t c = 0; above < count; ++c)
      if (s.keys[c] == least) ++s.zones[c], ++above;
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

  // Turns zones into runs of rows and a list of means, in order of position; tells how many rows there are.
  int64_t collect(const Query& query, int64_t head, Scratch& s, Wanted* wanted) const {
    const int64_t row = head_dim_ * item();
    s.runs.clear();
    s.means.clear();
    s.log_sizes.clear();
    s.read.resize(static_cast<size_t>(clusters_));
    s.estimated.resize(static_cast<size_t>(clusters_));
    int64_t at = 0, rows = 0;
    size_t all_estimated = 0;
    for (const Segment& segment : segments_) {
      const int64_t clusters = segment.clusters();
      const int32_t* offsets = segment.offsets.data() + head * (clusters + 1);
      const char* first = static_cast<const char*>(segment.rows.data()) + head * extent(segment.rows, 1) * row;
      const char* means = static_cast<const char*>(segment.means.data()) + head * clusters * head_dim_ * item();
      if (offsets[0] > 0) s.runs.push_back({first, first + offsets[0] * row, offsets[0]});
      rows += offsets[0];
      size_t read = 0;
      const size_t known = all_estimated;
      for (int64_t c = 0; c < clusters; ++c) {
        const int32_t zone = s.zones[static_cast<size_t>(at + c)];
        s.read[read] = static_cast<int32_t>(c);
        s.estimated[all_estimated] = static_cast<int32_t>(at + c);
        read += zone == 2;
        all_estimated += zone == 1;
      }
      for (size_t i = 0; i < read; ++i) {
        const int32_t begin = offsets[s.read[i]], end = offsets[s.read[i] + 1];
        if (wanted != nullptr)
          add_stored(segment.stored->slot(head, s.read[i]), s, *wanted);
        else
          s.runs.push_back({first + 2 * begin * row, first + (begin + end) * row, end - begin});
        rows += end - begin;
      }
      for (size_t i = known; i < all_estimated; ++i) {
        s.means.push_back(means + (s.estimated[i] - at) * head_dim_ * item());
        s.log_sizes.push_back(segment.log_size.data()[head * clusters + s.estimated[i] - at]);
      }
      at += clusters;
    }
    if (query.tail_rows > 0) {
      const char* tail = query.tail + head * 2 * query.tail_rows * row;
      s.runs.push_back({tail, tail + query.tail_rows * row, query.tail_rows});
    }
    return rows + query.tail_rows;
  }

  void select(const Query& query, int64_t head, Scratch& s, Wanted* wanted) const {
    const int64_t group = query.heads / kv_heads_;
    s.scores.reserve(static_cast<size_t>(group * clusters_));
    s.biased.reserve(static_cast<size_t>(group * clusters_));
    s.weights.reserve(static_cast<size_t>(group * clusters_));
    s.rank.reserve(static_cast<size_t>(clusters_));
    s.squares.reserve(static_cast<size_t>(group * head_dim_));
    if (clusters_ > 0) {
      scan(query, head, group, s);
      if (query.x) std::copy_n(s.scores.data(), group * clusters_, query.x + head * group * clusters_);
      choose(query, head, group, s);
    }
    if (wanted != nullptr) cache_->settle();
    s.exact_rows = collect(query, head, s, wanted);
  }

  int64_t stride_of(const Scratch& s) const { return (s.exact_rows + static_cast<int64_t>(s.means.size()) + 15) / 16 * 16; }

  // Scores of the rows that are there, or of those that came late: each has its place, so the order is free.
  void score(const Query& query, int64_t head, Scratch& s, bool late) const {
    const int64_t group = query.heads / kv_heads_, stride = stride_of(s);
    s.exact.reserve(static_cast<size_t>(group * stride));
    const auto dot = bf16_ ? wave_kernels().dot_bf16 : wave_kernels().dot_float;
    float* p = s.exact.data();
    for (size_t i = 0; i < s.runs.size(); p += s.runs[i++].count) {
      const Run& run = s.runs[i];
      if (run.late != late) continue;
      const char* ahead = s.runs[std::min(i + 1, s.runs.size() - 1)].keys;
      dot(query.q + head * group * head_dim_, static_cast<int>(group), run.keys, ahead, run.count, static_cast<int>(head_dim_),
          query.scale, p, stride);
    }
  }

  void attend(const Query& query, int64_t head, Scratch& s) const {
    const WaveKernels& ops = wave_kernels();
    const int64_t group = query.heads / kv_heads_, exact = s.exact_rows;
    const int hd = static_cast<int>(head_dim_), vectors = static_cast<int>(group);
    const int64_t estimated = static_cast<int64_t>(s.means.size()), all = exact + estimated, stride = stride_of(s);
    float* p = s.exact.data();
    for (int64_t v = 0; v < group; ++v) {
      const float* scores = s.scores.data() + v * clusters_;
      for (size_t i = 0; i < s.means.size(); ++i)
        p[v * stride + exact + static_cast<int64_t>(i)] = scores[s.estimated[i]] + s.log_sizes[i];
      const int64_t to = head * group + v;
      query.m[to] = -std::numeric_limits<float>::infinity();
      query.l[to] = all > 0 ? ops.soften(p + v * stride, all, query.m + to) : 0.0f;
    }
    float* acc = query.acc + head * group * head_dim_;
    std::fill_n(acc, group * head_dim_, 0.0f);
    const auto weigh = bf16_ ? ops.weigh_bf16 : ops.weigh_float;
    int64_t at = 0;
    for (size_t i = 0; i < s.runs.size(); ++i) {
      const char* ahead = s.runs[std::min(i + 1, s.runs.size() - 1)].values;
      weigh(p + at, stride, vectors, s.runs[i].values, ahead, s.runs[i].count, hd, acc);
      at += s.runs[i].count;
    }
    if (estimated == 0) return;
    const auto gather = bf16_ ? ops.gather_bf16 : ops.gather_float;
    s.means.insert(s.means.end(), kScatterAhead, s.means.back());
    gather(p + exact, stride, vectors, s.means.data(), estimated, hd, acc);
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
