// The owner of a store in Python: its methods.
#include <pthread.h>

#include "crash_test.h"
#include "python_store.h"

using namespace statepool::store;

namespace statepool::store {
unsigned forks = 0;
}

namespace {

[[maybe_unused]] const int watch_forks = pthread_atfork(nullptr, nullptr, [] { ++forks; });

template <class Call>
auto released(PyStore& s, Call&& call) {
  const std::shared_ptr<Store> store = s.holding();
  nb::gil_scoped_release release;
  return call(*store);
}

}  // namespace

void bind_store(nb::module_& m) {
  nb::class_<CrashReport>(m, "CrashReport")
      .def_ro("states", &CrashReport::states)
      .def_ro("again", &CrashReport::again)
      .def_ro("events", &CrashReport::events)
      .def_ro("operations", &CrashReport::operations)
      .def_ro("violation", &CrashReport::violation);
  m.def("crash_test", &crash_test, nb::arg("seed"), nb::arg("operations"), nb::call_guard<nb::gil_scoped_release>(),
        "Cuts the power at every point of a drawn history on a simulated disk; see crash_test.h.");

  m.def("fault_test", &fault_test, nb::arg("seed"), nb::arg("operations"), nb::call_guard<nb::gil_scoped_release>(),
        "Lets the disk fail at every point of a drawn history; see crash_test.h.");
  m.def("rot_test", &rot_test, nb::arg("seed"), nb::arg("operations"), nb::arg("flips"),
        nb::call_guard<nb::gil_scoped_release>(), "Damages a store's files; see crash_test.h.");

  nb::class_<Snapshot>(m, "Snapshot").def_ro("version", &Snapshot::version).def_ro("size", &Snapshot::size);

  nb::class_<PyStore, PyView>(m, "Store")
      .def("__init__",
           [](PyStore* self, const std::string& path, uint64_t capacity, uint64_t segment_size, int level, bool create,
              bool shared, uint64_t checkpoint_bytes, uint64_t epoch) {
             StoreOptions options;
             options.capacity = capacity;
             options.segment_size = segment_size;
             options.level = static_cast<Level>(level);
             options.create = create;
             options.shared = shared;
             options.checkpoint_bytes = checkpoint_bytes;
             options.epoch = epoch;
             new (self) PyStore(path, options);
           },
           nb::arg("path"), nb::kw_only(), nb::arg("capacity"), nb::arg("segment_size"), nb::arg("level"),
           nb::arg("create"), nb::arg("shared"), nb::arg("checkpoint_bytes"), nb::arg("epoch") = 0)
      .def("close", &PyStore::close)
      .def("structure",
           [](PyStore& s, const std::string& name, int kind, bool create) {
             return released(s, [&](Store& store) { return store.structure(name, static_cast<Kind>(kind), create); });
           },
           nb::arg("name"), nb::arg("kind"), nb::arg("create"))
      .def("drop", [](PyStore& s, uint32_t id) { released(s, [&](Store& store) { store.drop(id); }); }, nb::arg("id"))
      .def("put", [](PyStore& s, uint32_t id, nb::handle key, nb::handle value,
                     int level) { return s.one({Verb::put, id, view_of(key), view_of(value)}, level).number != 0; },
           nb::arg("id"), nb::arg("key").none(), nb::arg("value").none(), nb::arg("level") = -1)
      .def("erase", [](PyStore& s, uint32_t id, nb::handle key,
                       int level) { return s.one({Verb::erase, id, view_of(key), {}}, level).changed; },
           nb::arg("id"), nb::arg("key").none(), nb::arg("level") = -1)
      .def("update", &PyStore::update, nb::arg("id"), nb::arg("pairs"), nb::arg("level") = -1)
      .def("commit", &PyStore::commit, nb::arg("operations"), nb::arg("seen"), nb::arg("client") = 0,
           nb::arg("sequence") = 0, nb::arg("level") = -1)
      .def("transaction", &begin_transaction, nb::arg("level"), nb::arg("client"), nb::arg("sequence"))
      .def("pin", &PyStore::pin, nb::arg("id"), nb::arg("lease"))
      .def("unpin", [](PyStore& s, const Snapshot& snapshot) { s.open().unpin(snapshot); }, nb::arg("snapshot"))
      .def("get_at", &PyStore::get_at, nb::arg("snapshot"), nb::arg("key").none())
      .def("range_at", &PyStore::range_at, nb::arg("snapshot"), nb::arg("range"), nb::arg("limit"))
      .def("last_of",
           [](PyStore& s, uint32_t client) {
             std::vector<Outcome> outcomes;
             const uint64_t sequence = s.open().last_of(client, outcomes);
             return nb::make_tuple(sequence, PyStore::as_tuple(outcomes.empty() ? Outcome{} : outcomes.back()));
           },
           nb::arg("client"))
      .def("wait", &PyStore::wait, nb::arg("lsn"))
      .def("flush", [](PyStore& s) { released(s, [](Store& store) { store.flush(); }); })
      .def("checkpoint", [](PyStore& s) { released(s, [](Store& store) { store.checkpoint(); }); })
      .def("facts", [](PyStore& s) { return s.open().facts(); });
}
