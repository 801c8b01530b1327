// B+tree: a sorted dictionary in pages of 4 KiB (page.h); its leaves are linked, so scans walk from leaf to leaf.
//
// An insert moves the entries behind it inside one leaf and logs just those. A full page is halved (at the right edge
// of the tree only the last entry moves on, so ascending loads fill their pages). A page that becomes empty is freed
// and its neighbour takes over its range of keys; underfull pages stay.
#pragma once

#include "page.h"

namespace statepool::store {

template <class Mem>
class BPlusTree {
 public:
  BPlusTree(Mem& mem, Addr root) : mem_(mem), root_(root) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    const Addr leaf = mem.allocate(kPage);
    Page<Mem>::write(mem, leaf, 0, 0, nullptr, 0);
    mem.fill(root + kTop, leaf);
    return root;
  }

  void destroy() {
    destroy_page(top());
    mem_.release(root_, kRootSize);
  }

  bool get(Bytes key, std::string& value, uint64_t& lsn) const {
    const Addr item = find(key);
    if (item != 0) read_value(mem_, item, value, lsn);
    return item != 0;
  }

  uint64_t lsn_of(Bytes key) const {
    const Addr item = find(key);
    return item == 0 ? 0 : mem_.load(item);
  }

  uint64_t size() const { return mem_.load(root_ + Root::size); }

  size_t scan(const Range& range, size_t limit, std::vector<Entry>& out) const {
    return each(range, limit, [&](Addr item) { out.push_back(entry_at(mem_, item)); });
  }

  // Visits the items of the range in its direction, `limit` at most; returns how many.
  template <class Visit>
  size_t each(const Range& range, size_t limit, Visit&& visit) const {
    size_t left = limit;
    Page<Mem> leaf = first_leaf(range);
    LeafOrder<Mem> order(range);
    while (left > 0 && leaf.count() > 0) {  // only the one leaf of an empty tree has no entries
      order.enter(mem_, leaf);
      if (!leaf.each(range, left, visit)) break;
      const Addr next = range.reverse ? leaf.prev() : leaf.next();
      if (next == 0) break;
      leaf = Page<Mem>(mem_, next);
    }
    return limit - left;
  }

  // True if the key is new.
  bool put(Bytes key, Bytes value) {
    Path path;
    descend(key, path);
    const bool fresh = put_in(path, key, value);
    note_change(mem_, root_, fresh ? 1 : 0, false);
    return fresh;
  }

  bool erase(Bytes key) {
    Path path;
    descend(key, path);
    if (!erase_in(path, key)) return false;
    note_change(mem_, root_, -1, true);
    return true;
  }

  // Operations on distinct keys in ascending order: those of one leaf share one way down.
  void apply_sorted(const std::vector<BatchOp>& ops, std::vector<bool>& results) {
    results.assign(ops.size(), false);
    int64_t grown = 0;
    bool changed = false, removed = false;
    Path path;
    for (size_t i = 0; i < ops.size(); ++i) {
      const BatchOp& op = ops[i];
      if (path.depth == 0 || !holds(path.leaf(), op.key)) descend(op.key, path);
      results[i] = op.kind == BatchOp::put ? put_in(path, op.key, op.value) : erase_in(path, op.key);
      if (results[i]) grown += op.kind == BatchOp::put ? 1 : -1;
      changed |= op.kind == BatchOp::put || results[i];
      removed |= op.kind == BatchOp::erase && results[i];
    }
    if (changed) note_change(mem_, root_, grown, removed);
  }

 private:
  static constexpr Addr kTop = Root::own, kRootSize = kTop + 8;

  // The way down to a leaf. low and high are the separators around a page's keys, 0 at the edges of the tree; index is
  // the child taken.
  struct Step {
    Addr page, low, high;
    size_t index;
  };
  struct Path {
    Step steps[kMaxLevel + 1];
    size_t depth = 0;  // of steps; 0 when the way is no longer valid
    Step& leaf() { return steps[depth - 1]; }
  };

  Page<Mem> top() const { return Page<Mem>(mem_, mem_.load(root_ + kTop)); }

  Addr find(Bytes key) const {
    Page<Mem> page = top();
    while (!page.leaf()) page = page.down(page.child_for(key));
    const auto place = page.find(key);
    return place.found ? page.object(place.index) : 0;
  }

  Page<Mem> first_leaf(const Range& range) const {
    const bool bounded = range.reverse ? range.has_high : range.has_low;
    const Bytes key = range.reverse ? range.high : range.low;
    Page<Mem> page = top();
    while (!page.leaf()) {
      const size_t edge = range.reverse ? page.count() - 1 : 0;
      page = page.down(bounded ? page.child_for(key) : edge);
    }
    return page;
  }

  void descend(Bytes key, Path& path) const {
    path.depth = 0;
    Addr low = 0, high = 0;
    for (Page<Mem> page = top();;) {
      const size_t i = page.leaf() ? 0 : page.child_for(key);
      path.steps[path.depth++] = {page.at(), low, high, i};
      if (page.leaf()) return;
      if (i > 0) low = page.object(i);
      if (i + 1 < page.count()) high = page.object(i + 1);
      page = page.down(i);
    }
  }

  // Whether a key not below those seen before belongs to this leaf too.
  bool holds(const Step& leaf, Bytes key) const { return leaf.high == 0 || compare_key(mem_, leaf.high, key) > 0; }

  bool put_in(Path& path, Bytes key, Bytes value) {
    Page<Mem> leaf(mem_, path.leaf().page);
    auto place = leaf.find(key);
    if (place.found) {
      const Addr item = leaf.object(place.index);
      if (rewrite_item(mem_, item, value)) return false;
      leaf.set_object(place.index, make_item(mem_, key, value));
      release_item(mem_, item);
      return false;
    }
    while (leaf.full()) {
      make_room(path, place.index);
      descend(key, path);
      leaf = Page<Mem>(mem_, path.leaf().page);
      place = leaf.find(key);
    }
    leaf.insert(place.index, {prefix_of(key, leaf.skip()), make_item(mem_, key, value), 0});
    return true;
  }

  bool erase_in(Path& path, Bytes key) {
    Page<Mem> leaf(mem_, path.leaf().page);
    const auto place = leaf.find(key);
    if (!place.found) return false;
    release_item(mem_, leaf.object(place.index));
    leaf.remove(place.index);
    if (leaf.count() == 0 && path.depth > 1) {
      unlink(leaf);
      remove_page(path, path.depth - 1);
      path.depth = 0;
    }
    return true;
  }

  // ---- splitting ---------------------------------------------------------------------------------------------------
  // Splits the highest page of the full ones at the end of the path: the page above it has room. The caller goes down
  // again, and splits again if the leaf itself is still full. `at` is where the leaf's new entry would go.
  void make_room(Path& path, size_t at) {
    size_t d = path.depth - 1;
    while (d > 0 && Page<Mem>(mem_, path.steps[d - 1].page).full()) --d;
    const size_t index = d + 1 == path.depth ? at : path.steps[d].index + 1;
    if (d > 0) return split(path.steps[d - 1], path.steps[d], index);
    Step above{mem_.allocate(kPage), 0, 0, 0};
    const Slot only{0, 0, path.steps[0].page};
    const size_t level = Page<Mem>(mem_, only.child).level() + 1;
    if (level > kMaxLevel) throw StoreError(Fault::full, "B+tree: it would need more levels than a tree can have");
    Page<Mem>::write(mem_, above.page, level, 0, &only, 1);
    mem_.store(root_ + kTop, above.page);
    split(above, path.steps[0], index);
  }

  void split(const Step& above, const Step& step, size_t index) {
    Page<Mem> left(mem_, step.page);
    std::vector<Slot> slots = left.slots();
    const bool appending = step.high == 0 && index == slots.size();
    const size_t middle = appending ? slots.size() - 1 : slots.size() / 2;
    const Addr separator = left.leaf() ? make_separator(mem_, slots[middle - 1].object, slots[middle].object) : slots[middle].object;
    slots.erase(slots.begin(), slots.begin() + static_cast<long>(middle));
    if (!left.leaf()) slots[0].object = 0;  // it is the separator above now
    const size_t skip = shared_bytes(mem_, separator, step.high);
    if (skip != left.skip()) Page<Mem>::recode(mem_, slots, skip);
    const Addr right = mem_.allocate(kPage);
    Page<Mem>::write(mem_, right, left.level(), skip, slots.data(), slots.size());
    left.truncate(middle);
    left.recode(shared_bytes(mem_, step.low, separator));
    if (left.leaf()) link(left, right);
    Page<Mem> parent(mem_, above.page);
    parent.insert(above.index + 1, {prefix_of(key_of(mem_, separator), parent.skip()), separator, right});
  }

  void link(Page<Mem>& left, Addr right) {
    Page<Mem> fresh(mem_, right);
    const Addr next = left.next();
    fresh.set_prev(left.at());
    fresh.set_next(next);
    left.set_next(right);
    if (next != 0) Page<Mem>(mem_, next).set_prev(right);
  }

  // ---- removing empty pages ----------------------------------------------------------------------------------------
  void unlink(const Page<Mem>& leaf) {
    if (leaf.prev() != 0) Page<Mem>(mem_, leaf.prev()).set_next(leaf.next());
    if (leaf.next() != 0) Page<Mem>(mem_, leaf.next()).set_prev(leaf.prev());
  }

  // Takes the empty page at depth d > 0 out of the tree.
  void remove_page(Path& path, size_t d) {
    const Step& above = path.steps[d - 1];
    mem_.release(path.steps[d].page, kPage);
    Page<Mem> parent(mem_, above.page);
    if (parent.count() == 1 && d > 1) return remove_page(path, d - 1);
    // The left neighbour takes the range over, or the right one if there is none.
    const size_t gone = above.index == 0 ? 1 : above.index;
    release_item(mem_, parent.object(gone));
    parent.remove(above.index);
    if (above.index == 0) parent.set_object(0, 0);
    widen(parent, gone - 1, above.low, above.high);
    drop_top();
  }

  // Child i of the page and the pages along its edges may hold more keys than before: keys that share fewer bytes.
  void widen(Page<Mem> page, size_t i, Addr low, Addr high) {
    if (i > 0) low = page.object(i);
    if (i + 1 < page.count()) high = page.object(i + 1);
    Page<Mem> child = page.down(i);
    const size_t skip = std::min(child.skip(), shared_bytes(mem_, low, high));
    child.recode(skip);
    if (child.leaf()) return;
    widen(child, 0, low, high);
    if (child.count() > 1) widen(child, child.count() - 1, low, high);
  }

  void drop_top() {
    for (Page<Mem> page = top(); !page.leaf() && page.count() == 1; page = top()) {
      mem_.store(root_ + kTop, page.child(0));
      mem_.release(page.at(), kPage);
    }
  }

  void destroy_page(const Page<Mem>& page) {
    for (size_t i = 0; i < page.count(); ++i) {
      if (!page.leaf()) destroy_page(page.down(i));
      if (page.object(i) != 0) release_item(mem_, page.object(i));
    }
    mem_.release(page.at(), kPage);
  }

  Mem& mem_;
  Addr root_;
};

}  // namespace statepool::store
