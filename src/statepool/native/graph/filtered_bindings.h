// `search_filtered` of whatever holds rows.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "filtered.h"
#include "search_bindings.h"

namespace statepool::graph {

using Mask = nanobind::ndarray<const uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using Seeds = nanobind::ndarray<const uint32_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

inline Filter filter_of(int way, int enough, const Mask& allowed, const Seeds& seeds, int probe, float least) {
  if (way < 0 || way > static_cast<int>(Way::two_hops)) throw nanobind::value_error("way: is none of 0, 1, 2");
  return {static_cast<Way>(way), enough, {allowed.data(), allowed.shape(0)}, {seeds.data(), seeds.data() + seeds.shape(0)},
          probe, least};
}

inline Request request_of(int k, int width, int64_t deadline_ns) {
  Request request;
  request.k = k;
  request.width = width;
  request.deadline_ns = deadline_ns;
  return request;
}

}  // namespace statepool::graph
