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
    return root;
  }

  void destroy() {
    for (Addr node = mem_.load(head() + kLinks), next; node != 0; node = next) {
      next = mem_.load(node + kLinks);
      release_node(node);
    }
    mem_.release(root_, kRootSize);
  }

  bool get(Bytes key, std::string& value, uint64_t& lsn) const {
    const Addr node = at_or_after(key, nullptr);
    if (node == 0 || compare(node, key) != 0) return false;
    read_value(mem_, item_of(node), value, lsn);
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
    for (const BatchOp& o : operations)
      results.push_back(o.kind == BatchOp::put ? put(o.key, o.value, path) : erase(o.key, path));
  }

  uint64_t size() const { return mem_.load(root_ + Root::size); }

  size_t scan(const Range& range, size_t limit, std::vector<Entry>& out) const {
    return range.reverse ? scan_down(range, limit, out) : scan_up(range, limit, out);
  }

 private:
  static constexpr int kMaxHeight = 20;
  // A node: its item, its height, the first eight bytes of its key, its links. The head has links of all heights.
  static constexpr Addr kItem = 0, kHeight = 8, kPrefix = 16, kLinks = 24;
  static constexpr Addr kHead = Root::own, kRootSize = kHead + kLinks + 8 * kMaxHeight;
  using Path = std::array<Addr, kMaxHeight>;  // by level, the last node before the key

  Addr head() const { return root_ + kHead; }
  Addr item_of(Addr node) const { return mem_.load(node + kItem); }
  Addr next(Addr node, int level) const { return mem_.load(node + kLinks + 8 * level); }
  static size_t node_size(int height) { return kLinks + 8 * static_cast<size_t>(height); }

  // One level more with probability 1/4 each.
  static int height_of(Bytes key) {
    const uint64_t bits = hash_bytes(key) >> 8 | uint64_t{1} << 55;
    return std::min(1 + __builtin_ctzll(bits) / 2, kMaxHeight);
  }

  static uint64_t prefix_of(Bytes key) {
    uint64_t word = 0;
    std::memcpy(&word, key.data(), std::min<size_t>(8, key.size()));
    return __builtin_bswap64(word);
  }

  // Sign of the node's key against `key`; most are decided by what the node has of it.
  int compare(Addr node, Bytes key) const {
    const uint64_t ours = mem_.load(node + kPrefix), theirs = prefix_of(key);
    if (ours != theirs) return ours < theirs ? -1 : 1;
    mem_.touch(item_of(node), kItemGuess);
    return compare_key(mem_, item_of(node), key);
  }

  // The first node whose key is not below `key`; with a path, which must lie before the key, the way to it.
  Addr at_or_after(Bytes key, Path* path) const {
    Addr at = path == nullptr ? head() : (*path)[kMaxHeight - 1];
    uint64_t steps = 0;
    const uint64_t most = size() + kMaxHeight + 1;
    for (int level = kMaxHeight - 1; level >= 0; --level) {
      // The path of the search before may be further along on this level than where the level above ended.
      if (path != nullptr && (*path)[level] != head() && (at == head() || later((*path)[level], at))) at = (*path)[level];
      for (Addr node = next(at, level); node != 0; node = next(at, level)) {
        mem_.touch(node, node_size(level + 1));
        if (compare(node, key) >= 0) break;
        at = node;
        if (++steps > most * kMaxHeight) throw Torn{};
      }
      if (path != nullptr) (*path)[level] = at;
    }
    return next(at, 0);
  }

  bool later(Addr a, Addr b) const { return a != b && compare(b, key_of(mem_, item_of(a))) < 0; }

  bool put(Bytes key, Bytes value, Path& path) {
    const Addr found = at_or_after(key, &path);
    if (found != 0 && compare(found, key) == 0) {
      const Addr item = item_of(found);
      if (!rewrite_item(mem_, item, value)) {
        mem_.store(found + kItem, make_item(mem_, key, value));
        release_item(mem_, item);
      }
      note_change(mem_, root_, 0, false);
      return false;
    }
    const int height = height_of(key);
    const Addr node = mem_.allocate(node_size(height));
    mem_.fill(node + kItem, make_item(mem_, key, value));
    mem_.fill(node + kHeight, static_cast<uint64_t>(height));
    mem_.fill(node + kPrefix, prefix_of(key));
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
    const auto height = static_cast<int>(mem_.load(node + kHeight));
    for (int level = 0; level < height; ++level) mem_.store(path[level] + kLinks + 8 * level, next(node, level));
    release_node(node);
    note_change(mem_, root_, -1, true);
    return true;
  }

  void release_node(Addr node) {
    release_item(mem_, item_of(node));
    mem_.release(node, node_size(static_cast<int>(mem_.load(node + kHeight))));
  }

  size_t scan_up(const Range& range, size_t limit, std::vector<Entry>& out) const {
    Addr node = range.has_low ? at_or_after(range.low, nullptr) : next(head(), 0);
    if (node != 0 && range.has_low && !range.include_low && compare(node, range.low) == 0) node = next(node, 0);
    size_t count = 0;
    for (; node != 0 && count < limit; node = next(node, 0)) {
      mem_.touch(node, node_size(1));
      if (range.has_high) {
        const int sign = compare(node, range.high);
        if (sign > 0 || (sign == 0 && !range.include_high)) break;
      }
      out.push_back(entry_at(mem_, item_of(node)));
      ++count;
    }
    return count;
  }

  // Links go one way only, so each step down is a search for the node before.
  size_t scan_down(const Range& range, size_t limit, std::vector<Entry>& out) const {
    size_t count = 0;
    for (Addr node = range.has_high ? last_below(range.high, range.include_high) : last(); node != 0 && count < limit;) {
      Entry entry = entry_at(mem_, item_of(node));
      if (range.has_low) {
        const int sign = entry.key.compare(range.low);
        if (sign < 0 || (sign == 0 && !range.include_low)) break;
      }
      node = last_below(entry.key, false);
      out.push_back(std::move(entry));
      ++count;
    }
    return count;
  }

  Addr last_below(Bytes key, bool inclusive) const {
    Path path;
    path.fill(head());
    const Addr node = at_or_after(key, &path);
    if (inclusive && node != 0 && compare(node, key) == 0) return node;
    return path[0] == head() ? 0 : path[0];
  }

  Addr last() const {
    Addr at = head();
    for (int level = kMaxHeight - 1; level >= 0; --level)
      for (Addr node = next(at, level); node != 0; node = next(at, level)) at = node;
    return at == head() ? 0 : at;
  }

  Mem& mem_;
  Addr root_;
};

}  // namespace statepool::store
