// The owner of a store, as Python holds it.
#pragma once

#include <nanobind/stl/map.h>

#include "interpreter_gate.h"
#include "posix_disk.h"
#include "python_view.h"
#include "store.h"

namespace statepool::store {

extern unsigned forks;  // how often this process came out of a fork

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
    settle(open().submit(&o, 1, &outcome), level);
    return outcome;
  }

  void settle(uint64_t lsn, int level) {
    Store& store = open();
    const Level wanted = store.level(static_cast<Level>(level));
    if (wanted == Level::process) store.settle(lsn, wanted);
    else wait(lsn);
  }

  void wait(uint64_t lsn) const {
    if (lsn <= open().durable_lsn()) return;
    const std::shared_ptr<Store> store = holding();
    nb::gil_scoped_release released;
    interpreter_gate.leave();
    if (store->wait(lsn)) interpreter_gate.enter();
  }

  // Pairs of an iterable as one commit; the bytes objects are kept alive by `items` and `held`.
  void update(uint32_t id, const nb::object& pairs, int level) {
    const nb::list items(pairs);
    std::vector<nb::object> held;
    std::vector<Operation> operations;
    operations.reserve(items.size());
    const auto bytes_of = [&](nb::handle b) {
      if (PyByteArray_Check(b.ptr()) || PyMemoryView_Check(b.ptr())) b = held.emplace_back(nb::steal(PyBytes_FromObject(b.ptr())));
      return view_of(b);
    };
    for (nb::handle pair : items) {
      if (!PyTuple_Check(pair.ptr())) pair = held.emplace_back(nb::tuple(nb::borrow(pair)));
      if (PyTuple_Size(pair.ptr()) != 2) throw StoreError(Fault::invalid, "update: each item must be a (key, value) pair");
      operations.push_back({Verb::put, id, bytes_of(PyTuple_GetItem(pair.ptr(), 0)), bytes_of(PyTuple_GetItem(pair.ptr(), 1))});
    }
    if (operations.empty()) return;
    std::vector<Outcome> outcomes(operations.size());
    settle(open().submit(operations.data(), operations.size(), outcomes.data()), level);
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
      read.push_back({nb::cast<uint32_t>(t[0]), whole ? Bytes() : view_of(t[1]), nb::cast<uint64_t>(t[2]), whole});
    }
    nb::list out;
    if (all.empty()) {
      open().validate(read);
      return out;
    }
    std::vector<Outcome> outcomes(all.size());
    settle(open().submit(all.data(), all.size(), outcomes.data(), {client, sequence}, read), level);
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

  void see(uint64_t lsn) const override {
    if (open().must_wait(lsn)) wait(lsn);
  }

 protected:
  View& view() const override { return open(); }

 private:
  std::shared_ptr<Store> store_;
  unsigned forks_;
};

// Of a PyStore: transaction_bindings.cpp.
nb::object begin_transaction(const nb::object& store, int level, uint32_t client, uint64_t sequence);

}  // namespace statepool::store
