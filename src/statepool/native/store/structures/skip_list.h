// Skip list: towers of links over the entries in order, their heights drawn from the hash of the key, so that a replay
// builds the same towers.
#pragma once

#include <array>
#include <vector>

#include "../hash.h"
#include "../item.h"
#include "range.h"

namespace statepool::store {

template <class Mem>
class SkipList {
 public:
  SkipList(Mem& mem, Addr root) : mem_(mem), root_(root) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    mem.fill(root + kHead + kPrevious, root + kHead);
    return root;
  }

  void destroy() {
    for (Addr node = next(head(), 0), after; node != 0; node = after) {
      after = next(node, 0);
      release_node(node);
    }
    mem_.release(root_, kRootSize);
  }

  bool get(Bytes key, std::string& value, uint64_t& lsn) const {
    const Addr node = at_or_after(key, nullptr);
    if (node == 0 || compare(node, key) != 0) return false;
    read_value(mem_, item_of(node), value, lsn);  // compare() has touched it
    return true;
  }

  uint64_t lsn_of(Bytes key) const {
    const Addr node = at_or_after(key, nullptr);
    return node == 0 || compare(node, key) != 0 ? 0 : item_at(mem_, item_of(node)).lsn;
  }

  bool put(Bytes key, Bytes value) {
    Path path;
    path.fill(head());
    return put(key, value, path);
  }

  bool erase(Bytes key) {
    Path path;
    path.fill(head());
    return erase(key, path);
  }

  // Keys in ascending order share one walk: each search goes on from the towers that the one before ended at.
  void apply_sorted(const std::vector<BatchOp>& operations, std::vector<bool>& results) {
    Path path;
    path.fill(head());
    results.clear();
    results.reserve(operations.size());
    for (const BatchOp& o : operations)
      results.push_back(o.kind == BatchOp::put ? put(o.key, o.value, path) : erase(o.key, path));
  }

  uint64_t size() const {
    mem_.touch(root_, kRootSize);
    return mem_.load(root_ + Root::size);
  }

  size_t scan(const Range& range, size_t limit, std::vector<Entry>& out) const {
    return range.reverse ? scan_down(range, limit, out) : scan_up(range, limit, out);
  }

 private:
  static constexpr int kMaxHeight = 20;
  // A node: its item with its height above the address, the first eight bytes of its key, the node before it, its links.
  // The head is one of full height in the root; it comes before the first node and, backwards, after the last one.
  static constexpr Addr kItem = 0, kPrefix = 8, kPrevious = 16, kLinks = 24;
  static constexpr int kHeightShift = 48;
  static constexpr Addr kHead = Root::own, kRootSize = kHead + kLinks + 8 * kMaxHeight;
  using Path = std::array<Addr, kMaxHeight>;  // by level, the last node before the key

  Addr head() const { return root_ + kHead; }
  Addr item_of(Addr node) const { return mem_.load(node + kItem) & ((uint64_t{1} << kHeightShift) - 1); }
  int height_at(Addr node) const { return static_cast<int>(mem_.load(node + kItem) >> kHeightShift); }
  Addr next(Addr node, int level) const { return mem_.load(node + kLinks + 8 * level); }
  Addr previous(Addr node) const { return mem_.load(node + kPrevious); }
  static size_t node_size(int height) { return kLinks + 8 * static_cast<size_t>(height); }
  void set_item(Addr node, Addr item, int height) {
    mem_.store(node + kItem, item | static_cast<uint64_t>(height) << kHeightShift);
  }

  // One level more with probability 1/4 each.
  static int height_of(Bytes key) {
    const uint64_t bits = hash_bytes(key) >> 8 | uint64_t{1} << 55;
    return std::min(1 + __builtin_ctzll(bits) / 2, kMaxHeight);
  }

  // Ends a walk that a changing list leads around in circles: no walk takes more steps than there are nodes.
  class Steps {
   public:
    explicit Steps(const SkipList& list) : left_(list.size()) {}
    void next() {
      if (left_-- == 0) throw Torn{};
    }

   private:
    uint64_t left_;
  };

  // Sign of the node's key against `key`; most are decided by what the node has of it.
  int compare(Addr node, Bytes key, uint64_t prefix) const {
    const uint64_t ours = mem_.load(node + kPrefix);
    if (ours != prefix) return ours < prefix ? -1 : 1;
    mem_.touch(item_of(node), kItemGuess);
    return compare_key(mem_, item_of(node), key);
  }
  int compare(Addr node, Bytes key) const { return compare(node, key, prefix_of(key)); }

  // The first node whose key is not below `key`; with a path, which must lie before the key, the way to it.
  Addr at_or_after(Bytes key, Path* path) const {
    const uint64_t prefix = prefix_of(key);
    Addr at = head(), stop = 0;  // stop: a node that is known not to be below the key
    bool moved = false;
    Steps steps(*this);
    for (int level = kMaxHeight - 1; level >= 0; --level) {
      // Until this search passes the one before, the path of that one is further along on each level.
      if (path != nullptr && !moved) at = (*path)[level];
      for (Addr node = next(at, level); node != 0 && node != stop; node = next(at, level)) {
        mem_.touch(node, node_size(level + 1));
        if (compare(node, key, prefix) >= 0) {
          stop = node;
          break;
        }
        at = node;
        moved = true;
        steps.next();
      }
      if (path != nullptr) (*path)[level] = at;
    }
    return next(at, 0);
  }

  bool put(Bytes key, Bytes value, Path& path) {
    const Addr found = at_or_after(key, &path);
    if (found != 0 && compare(found, key) == 0) {
      const Addr item = item_of(found);
      if (!rewrite_item(mem_, item, value)) {
        set_item(found, make_item(mem_, key, value), height_at(found));
        release_item(mem_, item);
      }
      note_change(mem_, root_, 0, false);
      return false;
    }
    const int height = height_of(key);
    const Addr node = mem_.allocate(node_size(height));
    mem_.fill(node + kItem, make_item(mem_, key, value) | static_cast<uint64_t>(height) << kHeightShift);
    mem_.fill(node + kPrefix, prefix_of(key));
    mem_.fill(node + kPrevious, path[0]);
    mem_.store((found != 0 ? found : head()) + kPrevious, node);
    for (int level = 0; level < height; ++level) {
      mem_.fill(node + kLinks + 8 * level, next(path[level], level));
      mem_.store(path[level] + kLinks + 8 * level, node);
    }
    note_change(mem_, root_, 1, false);
    return true;
  }

  bool erase(Bytes key, Path& path) {
    const Addr node = at_or_after(key, &path);
    if (node == 0 || compare(node, key) != 0) return false;
    const Addr after = next(node, 0);
    mem_.store((after != 0 ? after : head()) + kPrevious, path[0]);
    for (int level = 0; level < height_at(node); ++level)
      mem_.store(path[level] + kLinks + 8 * level, next(node, level));
    release_node(node);
    note_change(mem_, root_, -1, true);
    return true;
  }

  void release_node(Addr node) {
    release_item(mem_, item_of(node));
    mem_.release(node, node_size(height_at(node)));
  }

  Entry entry_of(Addr node) const {
    mem_.touch(item_of(node), kItemGuess);
    return entry_at(mem_, item_of(node));
  }

  size_t scan_up(const Range& range, size_t limit, std::vector<Entry>& out) const {
    Addr node = range.has_low ? at_or_after(range.low, nullptr) : next(head(), 0);
    if (node != 0 && range.has_low && !range.include_low && compare(node, range.low) == 0) node = next(node, 0);
    size_t count = 0;
    for (Steps steps(*this); node != 0 && count < limit; node = next(node, 0), ++count) {
      steps.next();
      mem_.touch(node, node_size(1));
      if (range.has_high) {
        const int sign = compare(node, range.high);
        if (sign > 0 || (sign == 0 && !range.include_high)) break;
      }
      out.push_back(entry_of(node));
    }
    return count;
  }

  size_t scan_down(const Range& range, size_t limit, std::vector<Entry>& out) const {
    Addr node = previous(head());
    if (range.has_high) {
      node = at_or_after(range.high, nullptr);
      const bool itself = node != 0 && range.include_high && compare(node, range.high) == 0;
      if (!itself) node = previous(node != 0 ? node : head());
    }
    size_t count = 0;
    for (Steps steps(*this); node != head() && count < limit; node = previous(node), ++count) {
      steps.next();
      mem_.touch(node, node_size(1));
      if (range.has_low) {
        const int sign = compare(node, range.low);
        if (sign < 0 || (sign == 0 && !range.include_low)) break;
      }
      out.push_back(entry_of(node));
    }
    return count;
  }

  Mem& mem_;
  Addr root_;
};

}  // namespace statepool::store
