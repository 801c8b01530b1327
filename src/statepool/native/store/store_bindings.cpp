// The owner of a store, as Python holds it.
#include <nanobind/stl/map.h>

#include <pthread.h>

#include "crash_test.h"
#include "crc32c.h"
#include "posix_disk.h"
#include "python_view.h"
#include "store.h"

using namespace statepool::store;

namespace {

unsigned forks = 0;  // how often this process came out of a fork
[[maybe_unused]] const int watch_forks = pthread_atfork(nullptr, nullptr, [] { ++forks; });

// What Python holds. Waits release the GIL; everything else is too short for that to pay.
//
// Calls that release the GIL hold the store by a pointer of their own, so that closing it in another thread meanwhile
// leaves them with a closed store, not with none. A forked child shares the folder, the heap and the lock with its
// parent but has no thread to write the log: there the store can be neither used nor closed.
class PyStore final : public PyView {
 public:
  PyStore(const std::string& path, const StoreOptions& options) : forks_(forks) {
    nb::gil_scoped_release released;
    store_ = std::make_shared<Store>(std::make_unique<PosixDisk>(path, options.create), options);
    level_ = options.level;
  }
  ~PyStore() {
    if (forks_ != forks) new std::shared_ptr<Store>(std::move(store_));  // never destroyed: it is the parent's
  }

  Store& open() const { return *holding(); }

  const std::shared_ptr<Store>& holding() const {
    if (forks_ != forks)
      throw StoreError(Fault::read_only, "store: it was opened before this process was forked; open it in one of the two");
    if (store_ == nullptr) throw StoreError(Fault::read_only, "store: it is closed");
    return store_;
  }

  void close() {
    if (forks_ != forks) return;
    const std::shared_ptr<Store> store = std::move(store_);
    store_ = nullptr;
    nb::gil_scoped_release released;
    if (store != nullptr) store->close();
  }

  Outcome one(const Operation& o, int level) {
    Outcome outcome;
    Store& store = open();
    const uint64_t lsn = store.commit(&o, 1, &outcome, Level::process);
    settle(lsn, level);
    return outcome;
  }

  void settle(uint64_t lsn, int level) {
    const Level wanted = level < 0 ? level_ : static_cast<Level>(level);
    if (wanted == Level::process || lsn <= open().durable_lsn()) return;
    const std::shared_ptr<Store> store = holding();
    nb::gil_scoped_release released;
    store->wait(lsn);
  }

  // Pairs of one mapping or iterable as one commit; the bytes objects are kept alive by `held`.
  void update(uint32_t id, const nb::object& pairs, int level) {
    const nb::list held(pairs);
    std::vector<Operation> operations;
    operations.reserve(held.size());
    for (const nb::handle item : held) {
      const auto pair = nb::cast<nb::tuple>(item);
      if (pair.size() != 2) throw StoreError(Fault::invalid, "update: each item must be a (key, value) pair");
      operations.push_back({Verb::put, id, view_of(pair[0]), view_of(pair[1])});
    }
    if (operations.empty()) return;
    std::vector<Outcome> outcomes(operations.size());
    settle(open().commit(operations.data(), operations.size(), outcomes.data(), Level::process), level);
  }

  // operations: (verb, structure, a, b, x, y); seen: (structure, key or None, lsn); returns outcomes as tuples.
  nb::list commit(const nb::list& operations, const nb::list& seen, uint32_t client, uint64_t sequence, int level) {
    std::vector<Operation> all;
    for (const nb::handle item : operations) {
      const auto t = nb::cast<nb::tuple>(item);
      all.push_back({static_cast<Verb>(nb::cast<int>(t[0])), nb::cast<uint32_t>(t[1]), view_of(t[2]), view_of(t[3]),
                     nb::cast<uint64_t>(t[4]), nb::cast<uint64_t>(t[5])});
    }
    std::vector<Seen> read;
    for (const nb::handle item : seen) {
      const auto t = nb::cast<nb::tuple>(item);
      const bool whole = t[1].is_none();
      read.push_back({nb::cast<uint32_t>(t[0]), whole ? std::string() : std::string(view_of(t[1])),
                      nb::cast<uint64_t>(t[2]), whole});
    }
    nb::list out;
    if (all.empty() && read.empty()) return out;
    std::vector<Outcome> outcomes(all.size());
    settle(open().commit(all.data(), all.size(), outcomes.data(), Level::process, {client, sequence}, read), level);
    for (const Outcome& o : outcomes) out.append(as_tuple(o));
    return out;
  }

  static nb::tuple as_tuple(const Outcome& o) {
    return nb::make_tuple(o.changed, o.number, o.token, o.attempts, to_bytes(o.value));
  }

  nb::list range_at(const Snapshot& snapshot, const Range& range, size_t limit) const {
    std::vector<Entry> entries;
    open().scan_at(snapshot, range, limit, entries);
    return listed(entries);
  }

  nb::object get_at(const Snapshot& snapshot, nb::handle key) const {
    std::string value;
    return open().get_at(snapshot, view_of(key), value) ? nb::object(to_bytes(value)) : nb::none();
  }

  Snapshot pin(uint32_t id, uint64_t lease) {
    const Snapshot snapshot = open().pin(id, lease);
    see(snapshot.version);
    return snapshot;
  }

 protected:
  View& view() const override { return open(); }
  void see(uint64_t lsn) const override {
    if (!open().must_wait(lsn)) return;
    const std::shared_ptr<Store> store = holding();
    nb::gil_scoped_release released;
    store->wait(lsn);
  }

 private:
  std::shared_ptr<Store> store_;
  Level level_ = Level::power;
  unsigned forks_;
};

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
  m.def("crc32c", [](nb::bytes data, uint32_t seed) { return crc32c(data.c_str(), data.size(), seed); }, nb::arg("data"),
        nb::arg("seed") = 0);
  m.def("crash_test", &crash_test, nb::arg("seed"), nb::arg("operations"), nb::call_guard<nb::gil_scoped_release>(),
        "Cuts the power at every point of a drawn history on a simulated disk; see crash_test.h.");

  m.def("fault_test", &fault_test, nb::arg("seed"), nb::arg("operations"), nb::call_guard<nb::gil_scoped_release>(),
        "Lets the disk fail at every point of a drawn history; see crash_test.h.");
  m.def("rot_test", &rot_test, nb::arg("seed"), nb::arg("operations"), nb::arg("flips"),
        nb::call_guard<nb::gil_scoped_release>(), "Damages a store's files; see crash_test.h.");

  m.def("crc32c", [](nb::handle data) { return crc32c(view_of(data).data(), view_of(data).size()); }, nb::arg("data"));
  m.def("crc32c_table", [](nb::handle data) { return crc32c_table(view_of(data).data(), view_of(data).size()); },
        nb::arg("data"));

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
      .def("wait", [](PyStore& s, uint64_t lsn) { released(s, [&](Store& store) { store.wait(lsn); }); }, nb::arg("lsn"))
      .def("flush", [](PyStore& s) { released(s, [](Store& store) { store.flush(); }); })
      .def("checkpoint", [](PyStore& s) { released(s, [](Store& store) { store.checkpoint(); }); })
      .def("facts", [](PyStore& s) { return s.open().facts(); });
}
