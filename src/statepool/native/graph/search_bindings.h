// `search` and `exact` of whatever holds rows: a query in, `tuple_of` what it found out, the GIL released in between.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "query.h"

namespace statepool::graph {

using Vector = nanobind::ndarray<const float, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// `check(searched, query)` raises ValueError for a query of another width.
template <class Searched, class Check, class Tuple>
void bind_searches(nanobind::class_<Searched>& face, Check check, Tuple tuple_of) {
  using namespace nanobind::literals;
  face.def("search",
           [check, tuple_of](Searched& self, const Vector& query, int k, int width, int threads, int engine,
                             int64_t deadline_ns, int local_hops, uint64_t jitter, Lease* lease) {
             check(self, query);
             Request request;
             request.k = k;
             request.width = width;
             request.threads = threads;
             request.engine = static_cast<Engine>(engine);
             request.deadline_ns = deadline_ns;
             request.local_hops = local_hops;
             request.jitter = jitter;
             request.lease = lease;
             request.granted = lease != nullptr;
             decltype(self.search(query.data(), request)) found;
             {
               const nanobind::gil_scoped_release release;
               found = self.search(query.data(), request);
             }
             return tuple_of(found);
           },
           "query"_a, "k"_a, "width"_a, "threads"_a, "engine"_a, "deadline_ns"_a, "local_hops"_a, "jitter"_a,
           "lease"_a.none() = nanobind::none())
      .def("exact",
           [check, tuple_of](Searched& self, const Vector& query, int k) {
             check(self, query);
             decltype(self.exact(query.data(), k)) found;
             {
               const nanobind::gil_scoped_release release;
               found = self.exact(query.data(), k);
             }
             return tuple_of(found);
           },
           "query"_a, "k"_a);
}

}  // namespace statepool::graph
