// LiveSegment for Python: arrays in, labels and distances out, the GIL released in between.
#include "live_bindings.h"

#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "filtered_bindings.h"
#include "live.h"
#include "search_bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool::graph {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Labels = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> array_of(const std::vector<T>& values) {
  T* raw = new T[values.size()];
  std::copy(values.begin(), values.end(), raw);
  return {raw, {values.size()}, nb::capsule(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); })};
}

void check(const LiveSegment& self, const Matrix& rows) {
  if (rows.shape(1) != static_cast<size_t>(self.space().dim))
    throw nb::value_error("the rows do not have the width of this segment");
}

void check(const LiveSegment& self, const Matrix& rows, const Labels& labels, const Seeds& slots) {
  check(self, rows);
  if (rows.shape(0) != labels.shape(0) || rows.shape(0) != slots.shape(0))
    throw nb::value_error("there is not one label and one slot per row");
}

void check(const LiveSegment& self, const Vector& query) {
  if (query.shape(0) != static_cast<size_t>(self.space().dim))
    throw nb::value_error("the query does not have the width of this segment");
}

nb::tuple tuple_of(const LiveSegment::Found& found) {
  return nb::make_tuple(array_of(found.labels), array_of(found.distances), found.counts);
}

}  // namespace

void bind_live(nb::module_& m) {
  nb::exception<TakenError>(m, "TakenError", PyExc_ValueError);
  nb::exception<StaleError>(m, "StaleError", PyExc_RuntimeError);
  nb::exception<FullError>(m, "FullError", PyExc_ValueError);
  nb::class_<LiveSegment> face(m, "LiveSegment");
  face
      .def("__init__",
           [](LiveSegment* self, int dim, int metric, int dtype, int degree, size_t capacity, int window, float alpha) {
             new (self) LiveSegment(Space(static_cast<Metric>(metric), static_cast<Dtype>(dtype), dim), degree, capacity,
                                    window, alpha);
           },
           "dim"_a, "metric"_a, "dtype"_a, "degree"_a, "capacity"_a, "window"_a, "alpha"_a)
      .def("__len__", &LiveSegment::size)
      .def_prop_ro("dead", &LiveSegment::dead, "Deleted rows that are still in the graph.")
      .def_prop_ro("capacity", &LiveSegment::capacity)
      .def_prop_ro("turnover", &LiveSegment::turnover, "Repairs that freed slots.")
      .def("check",
           [](LiveSegment& self, const Matrix& rows) {
             check(self, rows);
             const nb::gil_scoped_release release;
             self.check(rows.data(), rows.shape(0));
           },
           "rows"_a, "Raises ValueError, naming the row, for one that cannot be added.")
      .def("take", [](LiveSegment& self, size_t count) { return array_of(self.take_slots(count)); }, "count"_a,
           "Slots for rows to come, uint32.")
      .def("fill",
           [](LiveSegment& self, const Matrix& rows, const Labels& labels, int threads) {
             check(self, rows);
             if (rows.shape(0) != labels.shape(0)) throw nb::value_error("there is not one label per row");
             const nb::gil_scoped_release release;
             self.fill(rows.data(), labels.data(), rows.shape(0), threads);
           },
           "rows"_a, "labels"_a, "threads"_a, "Many rows at once into an empty segment that nobody else has yet; row i takes slot i.")
      .def("give_back", [](LiveSegment& self, const Seeds& slots) { self.give_back(slots.data(), slots.shape(0)); }, "slots"_a)
      .def("slots",
           [](LiveSegment& self) {
             std::vector<uint64_t> labels;
             std::vector<uint8_t> live;
             self.slots(labels, live);
             return nb::make_tuple(array_of(labels), array_of(live));
           },
           "Of every slot: its label, and 1 if it is live.")
      .def("row",
           [](const LiveSegment& self, uint32_t slot) {
             if (slot >= self.capacity()) throw nb::index_error("slot: there is no such slot");
             std::vector<float> row(static_cast<size_t>(self.space().dims));
             distance_kernels().decode[static_cast<int>(self.space().dtype)](self.segment().row(slot), row.data(),
                                                                             self.space().dims);
             row.resize(static_cast<size_t>(self.space().dim));
             return array_of(row);
           },
           "slot"_a, "What lies in a slot; of use while no repair can free it.")
      .def("search_filtered",
           [](LiveSegment& self, const Vector& query, int k, int width, int64_t deadline_ns, int way, int enough,
              const Mask& allowed, const Seeds& seeds, int probe, float least, bool frozen, uint64_t turnover) {
             check(self, query);
             const Filter filter = filter_of(way, enough, allowed, seeds, probe, least);
             float share = 1;
             LiveSegment::Found found;
             {
               const nb::gil_scoped_release release;
               found = self.search_filtered(query.data(), request_of(k, width, deadline_ns), filter, frozen, turnover, share);
             }
             return nb::make_tuple(array_of(found.labels), array_of(found.distances), found.counts, share);
           },
           "query"_a, "k"_a, "width"_a, "deadline_ns"_a, "way"_a, "enough"_a, "allowed"_a, "seeds"_a, "probe"_a,
           "least"_a, "frozen"_a, "turnover"_a)
      .def("add",
           [](LiveSegment& self, const Matrix& rows, const Labels& labels, const Seeds& slots) {
             check(self, rows, labels, slots);
             const nb::gil_scoped_release release;
             self.add(rows.data(), labels.data(), slots.data(), rows.shape(0));
           },
           "rows"_a, "labels"_a, "slots"_a)
      .def("update",
           [](LiveSegment& self, const Matrix& rows, const Labels& labels, const Seeds& slots) {
             check(self, rows, labels, slots);
             const nb::gil_scoped_release release;
             self.update(rows.data(), labels.data(), slots.data(), rows.shape(0));
           },
           "rows"_a, "labels"_a, "slots"_a)
      .def("erase",
           [](LiveSegment& self, const Labels& labels) {
             const nb::gil_scoped_release release;
             return self.erase(labels.data(), labels.shape(0));
           },
           "labels"_a)
      .def("__contains__", &LiveSegment::contains, "label"_a)
      .def("get",
           [](LiveSegment& self, uint64_t label) -> nb::object {
             std::vector<float> row(static_cast<size_t>(self.space().dims));
             if (!self.get(label, row.data())) return nb::none();
             row.resize(static_cast<size_t>(self.space().dim));
             return nb::cast(array_of(row));
           },
           "label"_a, "The stored row, None if there is none.")
      .def("labels", [](LiveSegment& self) { return array_of(self.labels()); })
      .def("repair",
           [](LiveSegment& self) {
             const nb::gil_scoped_release release;
             return self.repair();
           })
      .def("unreachable",
           [](LiveSegment& self) {
             const nb::gil_scoped_release release;
             return self.unreachable();
           },
           "Rows that no path from an entry reaches.");
  bind_searches(
      face, [](const LiveSegment& self, const Vector& query) { check(self, query); },
      [](const LiveSegment::Found& found) { return tuple_of(found); });
}

}  // namespace statepool::graph
