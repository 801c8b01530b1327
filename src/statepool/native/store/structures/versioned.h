// The face of both multi-version trees: what readers and writers of any of them call, over its versions (versions.h).
//
// `Tree` gives find(snapshot, key): the item or 0; scan_at(snapshot, range, limit, out); and apply(batch, count).
#pragma once

#include <string>
#include <vector>

#include "range.h"
#include "versions.h"

namespace statepool::store {

template <class Tree, class Mem>
class Versioned {
 public:
  static Addr create(Mem& mem) { return Versions<Mem>::create(mem); }

  // ---- versions ----------------------------------------------------------------------------------------------------
  Addr current() const { return versions_.current(); }  // what the *_at methods take
  uint64_t version() const { return versions_.version_of(current()); }
  size_t collect(uint64_t oldest_pinned_version, size_t limit = 128) {
    return versions_.collect(oldest_pinned_version, limit);
  }
  uint64_t retired() const { return versions_.retired(); }

  // ---- reading -----------------------------------------------------------------------------------------------------
  bool get(Bytes key, std::string& value, uint64_t& lsn) const { return get_at(current(), key, value, lsn); }
  bool get_at(Addr snapshot, Bytes key, std::string& value, uint64_t& lsn) const {
    const Addr item = tree().find(snapshot, key);
    if (item != 0) read_value(mem_, item, value, lsn);
    return item != 0;
  }
  uint64_t lsn_of(Bytes key) const {
    const Addr item = tree().find(current(), key);
    return item == 0 ? 0 : mem_.load(item);
  }
  uint64_t size() const { return mem_.load(root_ + Root::size); }
  uint64_t size_at(Addr snapshot) const { return versions_.size_of(snapshot); }
  size_t scan(const Range& range, size_t limit, std::vector<Entry>& out) const {
    return tree().scan_at(current(), range, limit, out);
  }

  // ---- writing -----------------------------------------------------------------------------------------------------
  // True if the key is new.
  bool put(Bytes key, Bytes value) { return apply_one({BatchOp::put, key, value}); }
  bool erase(Bytes key) { return apply_one({BatchOp::erase, key, {}}); }

  // Operations on distinct keys in ascending order; one new version for all of them.
  void apply_sorted(const std::vector<BatchOp>& ops, std::vector<bool>& results) {
    results.assign(ops.size(), false);
    Batch batch{ops.data(), &results};
    tree().apply(batch, ops.size());
  }

 protected:
  struct Batch {
    const BatchOp* ops;
    std::vector<bool>* results;
    int64_t grown = 0;
    bool changed = false, removed = false;
  };

  Versioned(Mem& mem, Addr root, size_t node_size) : mem_(mem), root_(root), versions_(mem, root, node_size) {}

  Mem& mem_;
  Addr root_;
  Versions<Mem> versions_;

 private:
  const Tree& tree() const { return static_cast<const Tree&>(*this); }
  Tree& tree() { return static_cast<Tree&>(*this); }

  bool apply_one(const BatchOp& op) {
    std::vector<bool> results(1, false);
    Batch batch{&op, &results};
    tree().apply(batch, 1);
    return results[0];
  }
};

}  // namespace statepool::store
