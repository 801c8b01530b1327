// A transaction of Python: what it has read and what it will write, until it is committed in one call.
#include <algorithm>
#include <unordered_map>

#include "python_store.h"

using namespace statepool::store;

namespace {

class PyTransaction {
 public:
  PyTransaction(const nb::object& store, int level, uint32_t client, uint64_t sequence)
      : owner_(store), store_(nb::cast<PyStore&>(store)), level_(level), id_{client, sequence} {}

  // The present value, or that of a write in this transaction. What is read may still wait for the disk: the end of the
  // transaction waits with it.
  nb::object get(uint32_t id, nb::handle key, const nb::object& otherwise) {
    if (const Operation* own = written(id, view_of(key)); own != nullptr)
      return own->verb == Verb::put ? nb::object(nb::bytes(own->b.data(), own->b.size())) : otherwise;
    return read(id, key) ? nb::object(to_bytes(value_)) : otherwise;
  }

  void put(uint32_t id, nb::handle key, nb::handle value) { add(Verb::put, id, key, value, 0, 0); }

  bool erase(uint32_t id, nb::handle key) {
    const Operation* own = written(id, view_of(key));
    if (own != nullptr ? own->verb == Verb::erase : !read(id, key)) return false;
    add(Verb::erase, id, key, nb::bytes("", 0), 0, 0);
    return true;
  }

  void add(Verb verb, uint32_t id, nb::handle a, nb::handle b, uint64_t x, uint64_t y) {
    operations_.push_back({verb, id, view_of(a), view_of(b), x, y});
    keep(a), keep(b);
  }

  // From here on any change of the structure by another is a conflict.
  void whole(uint32_t id) { seen_.push_back({id, {}, store_.open().last_change(id), true}); }

  // The last write of each key of the structure: its value, or none if it was erased.
  nb::dict writes(uint32_t id) const {
    nb::dict out;
    for (const Operation& o : operations_)
      if (o.structure == id)
        out[nb::bytes(o.a.data(), o.a.size())] = o.verb == Verb::put ? nb::object(nb::bytes(o.b.data(), o.b.size())) : nb::none();
    return out;
  }

  void commit() {
    Store& store = store_.open();
    uint64_t lsn = 0;
    if (operations_.empty()) {
      store.validate(seen_);
    } else {
      std::vector<Outcome> outcomes(operations_.size());
      lsn = store.submit(operations_.data(), operations_.size(), outcomes.data(), id_, seen_);
      store_.settle(lsn, level_);
    }
    leave();
  }

  // Without a commit, what the transaction was told has to become durable all the same.
  void leave() { store_.see(newest_); }

 private:
  static constexpr size_t kFew = 16;

  bool read(uint32_t id, nb::handle key) {
    uint64_t lsn = 0;
    const bool found = store_.open().get(id, view_of(key), value_, lsn);
    newest_ = std::max(newest_, lsn);
    seen_.push_back({id, view_of(key), found ? lsn : 0, false});
    keep(key);
    return found;
  }

  // The last write of this key. A few of them are looked through, many get an index.
  const Operation* written(uint32_t id, Bytes key) {
    const auto is = [&](const Operation& o) { return o.structure == id && o.a == key; };
    if (operations_.size() <= kFew) {
      const auto found = std::find_if(operations_.rbegin(), operations_.rend(), is);
      return found == operations_.rend() ? nullptr : &*found;
    }
    for (; indexed_ < operations_.size(); ++indexed_)
      index_[operations_[indexed_].structure].insert_or_assign(operations_[indexed_].a, indexed_);
    const auto& of = index_[id];
    const auto found = of.find(key);
    return found == of.end() ? nullptr : &operations_[found->second];
  }

  void keep(nb::handle object) { held_.push_back(nb::borrow(object)); }

  nb::object owner_;
  PyStore& store_;
  int level_;
  OperationId id_;
  std::vector<Operation> operations_;
  std::vector<Seen> seen_;
  std::vector<nb::object> held_;  // whose bytes those two point to
  std::unordered_map<uint32_t, std::unordered_map<Bytes, size_t>> index_;
  size_t indexed_ = 0;
  uint64_t newest_ = 0;  // lsn of what was read
  std::string value_;
};

}  // namespace

nb::object statepool::store::begin_transaction(const nb::object& store, int level, uint32_t client, uint64_t sequence) {
  return nb::cast(PyTransaction(store, level, client, sequence));
}

void bind_transaction(nb::module_& m) {
  nb::class_<PyTransaction>(m, "Transaction")
      .def("get", &PyTransaction::get, nb::arg("id"), nb::arg("key").none(), nb::arg("default") = nb::none())
      .def("put", &PyTransaction::put, nb::arg("id"), nb::arg("key").none(), nb::arg("value").none())
      .def("erase", &PyTransaction::erase, nb::arg("id"), nb::arg("key").none())
      .def("add",
           [](PyTransaction& t, int verb, uint32_t id, nb::handle a, nb::handle b, uint64_t x, uint64_t y) {
             t.add(static_cast<Verb>(verb), id, a, b, x, y);
           },
           nb::arg("verb"), nb::arg("id"), nb::arg("a"), nb::arg("b"), nb::arg("x") = 0, nb::arg("y") = 0)
      .def("whole", &PyTransaction::whole, nb::arg("id"))
      .def("writes", &PyTransaction::writes, nb::arg("id"))
      .def("commit", &PyTransaction::commit)
      .def("leave", &PyTransaction::leave);
}
