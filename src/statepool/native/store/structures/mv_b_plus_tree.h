// Multi-version B+tree: pages (page.h) are never changed once their version is complete (versions.h).
//
// A batch is applied from the root down: each page that it touches is written once, however many operations meet in
// it, and the pages above take the new addresses. Readers hold a version by its record and need no lock.
#pragma once

#include "page.h"
#include "versioned.h"

namespace statepool::store {

template <class Mem>
class MvBPlusTree : public Versioned<MvBPlusTree<Mem>, Mem> {
  using Base = Versioned<MvBPlusTree<Mem>, Mem>;
  friend Base;

 public:
  using Base::current;
  MvBPlusTree(Mem& mem, Addr root) : Base(mem, root, kPage) {}

  // Snapshots end with it.
  void destroy() {
    if (const Addr top = versions_.node_of(current()); top != 0) destroy_page(Page<Mem>(mem_, top));
    versions_.destroy();
  }

  size_t scan_at(Addr snapshot, const Range& range, size_t limit, std::vector<Entry>& out) const {
    return each_at(snapshot, range, limit, [&](Addr item) { out.push_back(entry_at(mem_, item)); });
  }

  // Visits the items of the range in its direction, `limit` at most; returns how many.
  template <class Visit>
  size_t each_at(Addr snapshot, const Range& range, size_t limit, Visit&& visit) const {
    size_t left = limit;
    LeafOrder<Mem> order(range);
    Way way;
    const bool bounded = range.reverse ? range.has_high : range.has_low;
    const Bytes key = range.reverse ? range.high : range.low;
    if (const Addr top = versions_.node_of(snapshot); top != 0) sink(way, Page<Mem>(mem_, top), range, bounded, key);
    while (left > 0 && !way.empty()) {
      order.enter(mem_, way.back().page);
      if (!way.back().page.each(range, left, visit)) break;
      step(way, range);
    }
    return limit - left;
  }

 private:
  using Base::mem_, Base::root_, Base::versions_;
  using typename Base::Batch;

  struct Place {
    Page<Mem> page;
    size_t index;  // of the child taken
  };
  using Way = std::vector<Place>;
  using Slots = std::vector<Slot>;

  Addr find(Addr snapshot, Bytes key) const {
    const Addr top = versions_.node_of(snapshot);
    if (top == 0) return 0;
    Page<Mem> page(mem_, top);
    while (!page.leaf()) page = page.down(page.child_for(key));
    const auto place = page.find(key);
    return place.found ? page.object(place.index) : 0;
  }

  // Down to the leaf where the range starts (bounded by `key`), or along the edge.
  void sink(Way& way, Page<Mem> page, const Range& range, bool bounded, Bytes key) const {
    for (;;) {
      if (page.leaf()) return way.push_back({page, 0});
      const size_t i = bounded ? page.child_for(key) : range.reverse ? page.count() - 1 : 0;
      way.push_back({page, i});
      page = page.down(i);
    }
  }

  // To the next leaf in the range's direction; an empty way at the end.
  void step(Way& way, const Range& range) const {
    for (way.pop_back(); !way.empty(); way.pop_back()) {
      Place& above = way.back();
      if (range.reverse ? above.index == 0 : above.index + 1 >= above.page.count()) continue;
      above.index += range.reverse ? -1 : 1;
      return sink(way, above.page.down(above.index), range, false, {});
    }
  }

  void apply(Batch& batch, size_t count) {
    if (count == 0) return;
    versions_.begin();
    Slots pieces;
    size_t level = 0;
    if (const Addr top = versions_.node_of(current()); top != 0) {
      const Page<Mem> page(mem_, top);
      level = page.level();
      apply_page(batch, page, 0, count, 0, 0, pieces);
    } else {
      Slots slots;
      for (size_t k = 0; k < count; ++k)
        if (batch.ops[k].kind == BatchOp::put) apply_op(batch, k, 0, 0, slots);
      if (batch.changed) write_pages(0, 0, slots, 0, 0, 0, pieces);
    }
    if (!batch.changed) return;
    while (pieces.size() > 1) {
      if (++level > kMaxLevel) throw StoreError(Fault::full, "B+tree: it would need more levels than a tree can have");
      Slots slots;
      slots.swap(pieces);
      Page<Mem>::recode(mem_, slots, 0);
      write_pages(level, 0, slots, 0, 0, 0, pieces);
    }
    versions_.publish(pieces.empty() ? 0 : without_single_pages(pieces[0].child), batch.grown);
    note_change(mem_, root_, batch.grown, batch.removed);
  }

  // Applies ops [from, to), whose keys lie between the separators low and high, to the page. `pieces` get the pages
  // that take its place (objects are their separators, none for the first), or nothing if it became empty.
  void apply_page(Batch& batch, const Page<Mem>& page, size_t from, size_t to, Addr low, Addr high, Slots& pieces) {
    const Slots before = page.slots();
    Slots slots;
    const bool same = page.leaf() ? !merge_leaf(batch, page, before, from, to, slots)
                                  : !apply_children(batch, page, before, from, to, low, high, slots);
    if (same) return pieces.push_back({0, 0, page.at()});
    write_pages(page.level(), &page, slots, page.skip(), low, high, pieces);
  }

  // ---- leaves ------------------------------------------------------------------------------------------------------
  bool merge_leaf(Batch& batch, const Page<Mem>& page, const Slots& before, size_t from, size_t to, Slots& slots) {
    slots.reserve(before.size() + to - from);
    size_t copied = 0;
    bool changed = false;
    for (size_t k = from; k < to; ++k) {
      const BatchOp& op = batch.ops[k];
      const auto place = page.find(op.key);
      if (op.kind == BatchOp::erase && !place.found) continue;
      changed = true;
      slots.insert(slots.end(), before.begin() + static_cast<long>(copied), before.begin() + static_cast<long>(place.index));
      copied = place.index + (place.found ? 1 : 0);
      apply_op(batch, k, place.found ? before[place.index].object : 0, page.skip(), slots);
    }
    if (changed) slots.insert(slots.end(), before.begin() + static_cast<long>(copied), before.end());
    return changed;
  }

  // Operation k on the item that has its key, or none; a put adds a slot.
  void apply_op(Batch& batch, size_t k, Addr old, size_t skip, Slots& slots) {
    const BatchOp& op = batch.ops[k];
    batch.changed = true;
    if (op.kind == BatchOp::put) slots.push_back({prefix_of(op.key, skip), make_item(mem_, op.key, op.value), 0});
    if (old != 0) versions_.drop_item(old);
    const bool done = op.kind == BatchOp::put ? old == 0 : true;
    (*batch.results)[k] = done;
    if (done) batch.grown += op.kind == BatchOp::put ? 1 : -1;
    batch.removed |= op.kind == BatchOp::erase;
  }

  // ---- inner pages -------------------------------------------------------------------------------------------------
  bool apply_children(Batch& batch, const Page<Mem>& page, const Slots& before, size_t from, size_t to, Addr low,
                      Addr high, Slots& slots) {
    slots.reserve(before.size() + 2);
    bool changed = false;
    std::vector<size_t> wider;  // slots whose neighbour went, so that they have its range too
    size_t copied = 0;
    const auto copy_up_to = [&](size_t i) {
      slots.insert(slots.end(), before.begin() + static_cast<long>(copied), before.begin() + static_cast<long>(i));
      copied = i + 1;
    };
    for (size_t k = from; k < to;) {
      const size_t i = page.child_for(batch.ops[k].key);
      const Addr end = i + 1 < before.size() ? before[i + 1].object : 0;
      const size_t first = k++;
      while (k < to && (end == 0 || compare_key(mem_, end, batch.ops[k].key) > 0)) ++k;
      copy_up_to(i);
      const Slot& slot = before[i];
      Slots pieces;
      apply_page(batch, page.down(i), first, k, slot.object == 0 ? low : slot.object, end == 0 ? high : end, pieces);
      changed |= pieces.size() != 1 || pieces[0].child != slot.child;
      if (pieces.empty()) {
        if (slot.object != 0) versions_.drop_item(slot.object);
        wider.push_back(slots.empty() ? 0 : slots.size() - 1);
        continue;
      }
      slots.push_back({slot.prefix, slot.object, pieces[0].child});
      for (size_t p = 1; p < pieces.size(); ++p)
        slots.push_back({prefix_of(key_of(mem_, pieces[p].object), page.skip()), pieces[p].object, pieces[p].child});
    }
    copy_up_to(before.size());
    if (!wider.empty()) close_gaps(slots, wider, low, high);
    return changed;
  }

  // The first child that is left begins where the page begins, each holds what follows it up to the next.
  void close_gaps(Slots& slots, const std::vector<size_t>& wider, Addr low, Addr high) {
    if (slots.empty()) return;
    if (slots[0].object != 0) {
      versions_.drop_item(slots[0].object);
      slots[0].object = slots[0].prefix = 0;
    }
    for (const size_t i : wider) {
      const Addr from = i == 0 ? low : slots[i].object;
      slots[i].child = widen(slots[i].child, from, i + 1 < slots.size() ? slots[i + 1].object : high);
    }
  }

  // The page, or a copy of it, with all pages along its edges fit for keys between low and high, which may share fewer
  // bytes than before.
  Addr widen(Addr at, Addr low, Addr high) {
    const Page<Mem> page(mem_, at);
    const size_t skip = std::min(page.skip(), shared_bytes(mem_, low, high));
    Slots slots = page.slots();
    bool changed = skip != page.skip();
    if (changed) Page<Mem>::recode(mem_, slots, skip);
    for (const size_t i : {size_t{0}, slots.size() - 1}) {
      if (page.leaf()) break;
      const Addr from = i == 0 ? low : slots[i].object;
      const Addr child = widen(slots[i].child, from, i + 1 < slots.size() ? slots[i + 1].object : high);
      changed |= child != slots[i].child;
      slots[i].child = child;
    }
    return changed ? write_page(page.level(), &page, slots.data(), slots.size(), skip) : at;
  }

  // ---- pages -------------------------------------------------------------------------------------------------------
  // Writes the slots, whose prefixes follow `skip`, to as many pages as they need; the first takes the place of `old`.
  void write_pages(size_t level, const Page<Mem>* old, Slots& slots, size_t skip, Addr low, Addr high, Slots& pieces) {
    const size_t room = Page<Mem>::capacity(level), count = (slots.size() + room - 1) / room;
    if (count == 0 && old != nullptr) versions_.drop_node(old->at(), old->version());
    if (count == 1) pieces.push_back({0, 0, write_page(level, old, slots.data(), slots.size(), skip)});
    if (count < 2) return;
    // At the right edge of the tree, where ascending loads go on, all pages but the last are full.
    const size_t share = high == 0 ? room : (slots.size() + count - 1) / count;
    Addr separator = 0;
    for (size_t begin = 0; begin < slots.size(); begin += share, old = nullptr) {
      const size_t end = std::min(begin + share, slots.size());
      const Addr next = end == slots.size() ? 0 : split_before(level, slots, end);
      Slots part(slots.begin() + static_cast<long>(begin), slots.begin() + static_cast<long>(end));
      const size_t own = shared_bytes(mem_, begin == 0 ? low : separator, next == 0 ? high : next);
      if (own != skip) Page<Mem>::recode(mem_, part, own);
      pieces.push_back({0, separator, write_page(level, old, part.data(), part.size(), own)});
      separator = next;
    }
  }

  // The separator of a page that begins with slot i.
  Addr split_before(size_t level, Slots& slots, size_t i) {
    if (level == 0) return make_separator(mem_, slots[i - 1].object, slots[i].object);
    const Addr separator = slots[i].object;
    slots[i].object = slots[i].prefix = 0;
    return separator;
  }

  Addr write_page(size_t level, const Page<Mem>* old, const Slot* slots, size_t count, size_t skip) {
    const bool ours = old != nullptr && mem_.unseen(old->version());
    const Addr at = ours ? old->at() : mem_.allocate(kPage);
    Page<Mem>::write(mem_, at, level, skip, slots, count);
    if (old != nullptr && !ours) versions_.drop_node(old->at(), old->version());
    return at;
  }

  Addr without_single_pages(Addr top) {
    for (;;) {
      const Page<Mem> page(mem_, top);
      if (page.leaf() || page.count() > 1) return top;
      top = page.child(0);
      versions_.drop_node(page.at(), page.version());
    }
  }

  void destroy_page(const Page<Mem>& page) {
    for (size_t i = 0; i < page.count(); ++i) {
      if (!page.leaf()) destroy_page(page.down(i));
      if (page.object(i) != 0) release_item(mem_, page.object(i));
    }
    mem_.release(page.at(), kPage);
  }
};

}  // namespace statepool::store
