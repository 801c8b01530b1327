// What Python sees of building segments and of the wave buffer; shapes are checked here.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../arrays.h"
#include "../pool.h"
#include "../store/crc32c.h"
#include "cluster_cache.h"
#include "stored.h"
#include "wave_build.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool {
namespace {

void build(Stored<3> keys, Stored<3> values, int64_t pinned, int64_t clusters, int64_t iterations, Stored<4> centroids,
           std::optional<Stored<4>> variances, Stored<3> means, Stored<3> rows, Array<int32_t, 2> order,
           Array<int32_t, 2> offsets, Array<float, 2> log_size, Array<float, 2> spread, Array<float, 2> reach,
           Array<float, 2> value_reach, std::optional<Array<const uint16_t, 2>> labels) {
  WaveShape shape{extent(keys, 0), extent(keys, 1), extent(keys, 2), pinned, clusters, extent(means, 1), iterations};
  const bool bf16 = is_bf16(keys, "keys: must be uint16 or float32");
  require(is_bf16(values, "values: must be uint16 or float32") == bf16, "values: must have the dtype of keys");
  require(shape.heads > 0 && shape.head_dim > 0 && shape.head_dim % 16 == 0, "keys: head_dim must be a multiple of 16");
  for (size_t axis = 0; axis < 3; ++axis) require(keys.shape(axis) == values.shape(axis), "values: must have the shape of keys");
  require(pinned >= 0 && pinned < shape.tokens, "pinned: must leave at least one token");
  require(clusters > 0 && clusters <= shape.tokens - pinned, "clusters: must be between 1 and the tokens to cluster");
  require(iterations > 0, "iterations: must be positive");
  require(shape.padded == (clusters + 15) / 16 * 16, "means: must hold clusters rounded up to 16");
  const auto tiled = [&](const Stored<4>& a) {
    return extent(a, 0) == shape.heads && extent(a, 1) * 16 == shape.padded && extent(a, 2) == shape.head_dim && extent(a, 3) == 16 &&
           is_bf16(a, "centroids: must be uint16 or float32") == bf16;
  };
  require(tiled(centroids) && (!variances || tiled(*variances)), "centroids, variances: must be [heads, padded / 16, head_dim, 16]");
  require(extent(means, 0) == shape.heads && extent(means, 2) == shape.head_dim &&
              is_bf16(means, "means: must be uint16 or float32") == bf16,
          "means: must be [heads, padded, head_dim]");
  require(extent(rows, 0) == shape.heads && extent(rows, 1) == 2 * shape.tokens && extent(rows, 2) == shape.head_dim && is_bf16(rows, "rows: must be uint16 or float32") == bf16,
          "rows: must be [heads, 2 * tokens, head_dim]");
  require(extent(order, 0) == shape.heads && extent(order, 1) == shape.tokens, "order: must be [heads, tokens]");
  require(extent(offsets, 0) == shape.heads && extent(offsets, 1) == shape.padded + 1, "offsets: must be [heads, padded + 1]");
  for (const auto* each : {&log_size, &spread, &reach, &value_reach})
    require(extent(*each, 0) == shape.heads && extent(*each, 1) == shape.padded, "log_size, spread, reach, value_reach: must be [heads, padded]");
  if (labels) {
    require(extent(*labels, 0) == shape.heads && extent(*labels, 1) == shape.tokens - pinned, "labels: must be [heads, tokens - pinned]");
    const uint16_t *first = labels->data(), *last = first + shape.heads * (shape.tokens - pinned);
    require(*std::max_element(first, last) < clusters, "labels: name a cluster beyond the last");
  }
  const WaveArrays out{centroids.data(), variances ? variances->data() : nullptr, means.data(),    rows.data(),
                       order.data(),     offsets.data(),                          log_size.data(), spread.data(),
                       reach.data(),     value_reach.data()};
  wave_build(keys.data(), values.data(), bf16, shape, labels ? labels->data() : nullptr, out);
}

std::shared_ptr<StoredRows> store_rows(std::shared_ptr<ClusterCache> cache, Stored<3> rows, Array<const int32_t, 2> offsets) {
  const int64_t heads = extent(rows, 0), tokens = extent(rows, 1) / 2, clusters = extent(offsets, 1) - 1;
  const int64_t item = is_bf16(rows, "rows: must be uint16 or float32") ? 2 : 4;
  require(extent(rows, 2) * item == cache->row_bytes(), "rows: differ in size from the cache's");
  require(extent(rows, 1) % 2 == 0 && extent(offsets, 0) == heads && clusters > 0, "offsets: must be [heads, clusters + 1]");
  for (int64_t h = 0; h < heads; ++h) {
    const int32_t* at = offsets.data() + h * (clusters + 1);
    require(at[0] >= 0 && at[clusters] <= tokens, "offsets: lie outside of rows");
    for (int64_t c = 0; c < clusters; ++c) require(at[c] <= at[c + 1], "offsets: must not decrease");
  }
  return ClusterCache::store(std::move(cache), static_cast<const char*>(rows.data()), heads, tokens, offsets.data(), clusters);
}

std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> counts(ClusterCache& cache) {
  const CacheCounts c = cache.counts();
  return {c.hits, c.misses, c.bytes_read, c.reads, c.evicted};
}

// Of every row, whatever the threads.
void checksums(nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> rows, Array<uint32_t, 1> out) {
  require(extent(rows, 0) == extent(out, 0), "out: one per row");
  const int64_t bytes = extent(rows, 1);
  parallel_for(extent(rows, 0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out.data()[i] = store::crc32c(rows.data() + i * bytes, static_cast<size_t>(bytes));
  });
}

}  // namespace
}  // namespace statepool

void bind_wave_buffer(nb::module_& m) {
  using namespace statepool;
  nb::exception<TierFailure>(m, "TierFailure");
  m.attr("SLOT_BYTES") = sizeof(Slot);
  nb::class_<StoredRows>(m, "StoredRows", "The clusters of one segment in a file, until this object goes.")
      .def_prop_ro("memory", &StoredRows::memory, "Bytes of the table that finds them.");
  nb::class_<ClusterCache>(m, "ClusterCache", "Clusters in a file, the recently read ones in memory.")
      .def(nb::init<int, int64_t, int64_t, bool>(), "fd"_a, "row_bytes"_a, "pages"_a, "background"_a)
      .def("store", &store_rows, "rows"_a.noconvert(), "offsets"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
           "Write the clusters of a segment's rows [heads, 2 * tokens, head_dim]; raises TierFailure.")
      .def_prop_ro("page_bytes", &ClusterCache::page_bytes)
      .def_prop_ro("pages", &ClusterCache::capacity)
      .def_prop_ro("counts", &counts, "(hits, misses, bytes read, reads, evictions) of clusters since the start.");
  m.def("wave_build", &build, "keys"_a.noconvert(), "values"_a.noconvert(), "pinned"_a, "clusters"_a, "iterations"_a,
        "centroids"_a.noconvert(), "variances"_a.noconvert().none(), "means"_a.noconvert(), "rows"_a.noconvert(),
        "order"_a.noconvert(), "offsets"_a.noconvert(), "log_size"_a.noconvert(), "spread"_a.noconvert(),
        "reach"_a.noconvert(), "value_reach"_a.noconvert(), "labels"_a.noconvert().none() = nb::none(), nb::call_guard<nb::gil_scoped_release>(),
        "Cluster the keys [heads, tokens, head_dim] of one segment, head by head; fills the arrays of a segment.");
  m.def("checksums", &checksums, "rows"_a.noconvert(), "out"_a.noconvert(), nb::call_guard<nb::gil_scoped_release>(),
        "CRC-32C of each row of bytes.");
}
