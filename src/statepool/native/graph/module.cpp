// The Python module of the vector room: arrays in, ids and distances out, the GIL released in between.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "build.h"
#include "filtered_bindings.h"
#include "index.h"
#include "live_bindings.h"
#include "probe.h"
#include "search_bindings.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace statepool::graph;
using statepool::Dtype;

namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Links = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> owned(std::unique_ptr<T[]> data, std::initializer_list<size_t> shape) {
  T* raw = data.release();
  return {raw, shape, nb::capsule(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); })};
}

void check_width(const char* name, size_t got, int dim) {
  if (got != static_cast<size_t>(dim))
    throw nb::value_error((std::string(name) + " has " + std::to_string(got) + " values per vector, the index " +
                           std::to_string(dim)).c_str());
}

nb::tuple tuple_of(const Answer& answer) {
  const size_t count = answer.nearest.size();
  auto ids = std::make_unique<int64_t[]>(count);
  auto distances = std::make_unique<float[]>(count);
  for (size_t i = 0; i < count; ++i) {
    ids[i] = id_of(answer.nearest[i]);
    distances[i] = distance_of(answer.nearest[i]);
  }
  return nb::make_tuple(owned(std::move(ids), {count}), owned(std::move(distances), {count}), answer.counts);
}

}  // namespace

NB_MODULE(_graph, m) {
  m.doc() = "Graph search over vectors. statepool.vector is its face.";
  m.def("isa", [] { return statepool::isa_name(statepool::active_isa()); }, "The instruction set in use.");
  m.def("set_isa", &statepool::set_isa, "name"_a, "Use another instruction set; False if this machine lacks it.");

  m.def("measure_handoffs",
        [](int rounds) {
          const nb::gil_scoped_release release;
          const Handoffs found = measure_handoffs(rounds);
          const nb::gil_scoped_acquire acquire;
          return nb::make_tuple(found.one_way_ns, found.round_ns, found.start_ns, found.merge_ns);
        },
        "rounds"_a, "Nanoseconds: one way between two threads, a round of two that hands ids over and back, the start of a spinning helper, an entry merged.");
  m.def("loops", [] { return Crew::instance().stays(); },
        "Whether one caller asked for helpers so often in a row that they spin for it.");
  nb::class_<Lease>(m, "Lease", "How many threads a search may use, while it runs too.")
      .def(nb::init<int>(), "threads"_a)
      .def("lower", &Lease::lower, "to"_a, nb::call_guard<nb::gil_scoped_release>(),
           "Call helpers back for another caller; they are gone when it returns.");
  nb::class_<Cores>(m, "Cores", "The cores that searches use which choose their threads.")
      .def(nb::init<int, int64_t>(), "count"_a, "moment_ns"_a)
      .def_prop_ro("threads", &Cores::threads, "Of all searches that took theirs here.")
      .def_prop_ro("searches", &Cores::searches, "That took threads here.")
      .def_prop_ro("waiting", &Cores::waiting, "Searches that wait for a core.");
  nb::class_<Cores::Grant>(m, "Grant", "Threads of one search, until `end`.")
      .def(nb::init<Cores&, int, bool, bool>(), "cores"_a, "most"_a, "waits"_a, "lends"_a, nb::keep_alive<1, 2>(),
           nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("threads", &Cores::Grant::threads, "Fewer once others needed the cores.")
      .def("end", &Cores::Grant::end);

  nb::class_<Counts>(m, "Counts")
      .def_ro("ndc", &Counts::distances)
      .def_ro("ndc_max", &Counts::most)
      .def_ro("hops", &Counts::hops)
      .def_ro("thresholds", &Counts::thresholds)
      .def_ro("threads", &Counts::threads)
      .def_ro("truncated", &Counts::truncated);

  nb::exception<DamageError>(m, "DamageError", PyExc_RuntimeError);
  m.attr("BLOCK") = Guard::kBlock;
  m.def("checksums",
        [](const Bytes& data, size_t block) {
          const size_t count = (data.shape(0) + block - 1) / block;
          auto sums = std::make_unique<uint32_t[]>(count);
          {
            const nb::gil_scoped_release release;
            for (size_t i = 0; i < count; ++i)
              sums[i] = statepool::store::crc32c(data.data() + i * block, std::min(block, data.shape(0) - i * block));
          }
          return owned(std::move(sums), {count});
        },
        "data"_a, "block"_a, "CRC32C of every `block` bytes of data, uint32.");

  nb::class_<Guard>(m, "Guard")
      .def("__init__",
           [](Guard* self, const Bytes& data, const Words& sums) {
             if (sums.shape(0) != (data.shape(0) + Guard::kBlock - 1) / Guard::kBlock)
               throw nb::value_error("sums: needs one per block of data");
             new (self) Guard(reinterpret_cast<const char*>(data.data()), data.shape(0), sums.data());
           },
           "data"_a, "sums"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def_prop_ro("bad", &Guard::bad, "Offset in data of a damaged block that was read, -1 if there is none.")
      .def("touch",
           [](Guard& self, size_t offset, size_t bytes) {
             const nb::gil_scoped_release release;
             return self.touch(offset, bytes);
           },
           "offset"_a, "bytes"_a, "Whether the blocks of this part of data are as they were written.");

  nb::class_<Index> face(m, "Index");
  face
      .def("__init__",
           [](Index* self, int dim, int metric, int dtype, int degree) {
             new (self) Index(Space(static_cast<Metric>(metric), static_cast<Dtype>(dtype), dim), degree);
           },
           "dim"_a, "metric"_a, "dtype"_a, "degree"_a)
      .def("__len__", &Index::size)
      .def_prop_ro("built", [](const Index& self) { return self.built.load(std::memory_order_relaxed); },
                   "Nodes that the build under way, or the last one, has linked.")
      .def("build",
           [](Index& self, const Matrix& rows, int window, float alpha, int threads, uint64_t seed) {
             check_width("X", rows.shape(1), self.space().dim);
             const nb::gil_scoped_release release;
             self.load_rows(rows.data(), rows.shape(0));
             BuildOptions options;
             options.window = window;
             options.alpha = alpha;
             options.threads = threads;
             options.seed = seed;
             self.built.store(0, std::memory_order_relaxed);
             options.progress = &self.built;
             build(*self.segment(), options);
           },
           "rows"_a, "window"_a, "alpha"_a, "threads"_a, "seed"_a)
      .def("seal",
           [](Index& self, int threads, uint64_t seed) {
             const nb::gil_scoped_release release;
             self.seal(threads, seed);
           },
           "threads"_a, "seed"_a)
      .def("arrays",
           [](nb::object self) {
             Segment* segment = nb::cast<Index&>(self).segment();
             const size_t count = segment->size();
             nb::ndarray<nb::numpy, const uint8_t> rows(segment->rows(), {count, segment->space.stride}, self);
             nb::ndarray<nb::numpy, const uint32_t> links(segment->links(0), {count, static_cast<size_t>(segment->degree)}, self);
             const size_t starts = segment->entries.size();
             auto entries = std::make_unique<uint32_t[]>(starts);
             std::copy(segment->entries.begin(), segment->entries.end(), entries.get());
             return nb::make_tuple(rows, links, owned(std::move(entries), {starts}), segment->space.norm);
           },
           "Views of the stored rows and links, the entries, the common norm under ip. Needs a built index.")
      .def("attach",
           [](Index& self, const Rows& rows, const Links& links, const Words& entries, float norm,
              const std::optional<Rows>& sealed, float unit, uint64_t seed, Guard* guard) {
             const size_t count = rows.shape(0);
             if (rows.shape(1) != self.space().stride || links.shape(0) != count ||
                 links.shape(1) != static_cast<size_t>(self.degree()))
               throw nb::value_error("the rows and links do not have the shapes of this index");
             self.attach(rows.data(), links.data(), count, {entries.data(), entries.data() + entries.shape(0)}, norm,
                         sealed ? sealed->data() : nullptr, unit, seed, guard);
             if (sealed && (sealed->shape(0) != count + 1 || sealed->shape(1) != self.sealed()->row_bytes()))
               throw nb::value_error("the sealed rows do not have the shape of this index");
           },
           "rows"_a, "links"_a, "entries"_a, "norm"_a, "sealed"_a.none(), "unit"_a, "seed"_a, "guard"_a.none(),
           "Search memory that the caller keeps alive.")
      .def("sealed",
           [](nb::object self) -> nb::object {
             const Index& index = nb::cast<Index&>(self);
             const SealedSegment* sealed = index.sealed();
             if (sealed == nullptr) return nb::none();
             nb::ndarray<nb::numpy, const uint8_t> rows(sealed->row(0), {index.size() + 1, sealed->row_bytes()}, self);
             return nb::make_tuple(rows, sealed->unit(), sealed->seed());
           },
           "A view of the sealed rows, their unit and seed; None if the index is not sealed.");
  face.def("measure_steps",
           [](Index& self, const Matrix& queries, int width) {
             check_width("queries", queries.shape(1), self.space().dim);
             const nb::gil_scoped_release release;
             const Steps found = measure_steps(*self.segment(), queries.data(), queries.shape(0), width);
             const nb::gil_scoped_acquire acquire;
             return nb::make_tuple(found.meet_ns, found.first_ns, found.row_ns, found.insert_ns);
           },
           "queries"_a, "width"_a,
           "Nanoseconds of one thread: tags of an expansion, before its first distance, each distance, each insertion.");
  face.def("measure_beside",
           [](Index& self, const Matrix& queries, int width) {
             check_width("queries", queries.shape(1), self.space().dim);
             const nb::gil_scoped_release release;
             const Beside f = measure_beside(*self.segment(), queries.data(), queries.shape(0), width);
             const nb::gil_scoped_acquire acquire;
             return nb::make_tuple(f.alone_ns, f.alone_hops, f.alone_distances, f.ns, f.hops, f.distances);
           },
           "queries"_a, "width"_a,
           "Nanoseconds, hops and distances of one thread alone, and of one beside another over the same tags.");
  face.def("search_filtered",
           [](Index& self, const Vector& query, int k, int width, int64_t deadline_ns, int way, int enough,
              const Mask& allowed, const Seeds& seeds, int probe, float least) {
             check_width("q", query.shape(0), self.space().dim);
             const Filter filter = filter_of(way, enough, allowed, seeds, probe, least);
             float share = 1;
             Answer found;
             {
               const nb::gil_scoped_release release;
               found = self.search_filtered(query.data(), request_of(k, width, deadline_ns), filter, share);
             }
             return nb::make_tuple(tuple_of(found), share);
           },
           "query"_a, "k"_a, "width"_a, "deadline_ns"_a, "way"_a, "enough"_a, "allowed"_a,
           "seeds"_a, "probe"_a, "least"_a);
  face.def("search_auto",
           [](Index& self, const Vector& query, int k, int width, int most, int engine, int64_t deadline_ns,
              const nb::bytes& periods, Cores& cores) {
             check_width("q", query.shape(0), self.space().dim);
             if (periods.size() <= static_cast<size_t>(most)) throw nb::value_error("periods: needs one for every number of threads");
             const char* local_hops = periods.c_str();
             Request request = request_of(k, width, deadline_ns);
             request.engine = static_cast<Engine>(engine);
             request.granted = true;
             Answer found;
             {
               const nb::gil_scoped_release release;
               Cores::Grant grant(cores, most, deadline_ns == 0, request.engine == Engine::async);
               request.threads = grant.threads();
               request.lease = grant.lease();
               request.local_hops = local_hops[request.threads];
               found = self.search(query.data(), request);
             }
             return tuple_of(found);
           },
           "query"_a, "k"_a, "width"_a, "most"_a, "engine"_a, "deadline_ns"_a, "periods"_a, "cores"_a,
           "`search` with at most so many of `cores`; `periods` has the `local_hops` of every number of threads.");
  bind_searches(
      face, [](const Index& self, const Vector& query) { check_width("q", query.shape(0), self.space().dim); },
      [](const Answer& found) { return tuple_of(found); });

  bind_live(m);
}
