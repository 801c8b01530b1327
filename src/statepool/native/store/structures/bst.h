// Binary search tree: a treap whose priorities are the hashes of its keys, so that its shape depends on the keys alone.
// A node is one line of the processor's cache, half of it the first bytes of the key: most steps read nothing else.
#pragma once

#include <array>
#include <vector>

#include "../hash.h"
#include "../item.h"
#include "range.h"
#include "steps.h"

namespace statepool::store {

template <class Mem>
class Bst {
 public:
  Bst(Mem& mem, Addr root) : mem_(mem), root_(root) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    return root;
  }

  void destroy() {
    std::vector<Addr> open;
    if (const Addr top = mem_.load(root_ + kTop); top != 0) open.push_back(top);
    while (!open.empty()) {
      const Addr node = open.back();
      open.pop_back();
      for (const Addr side : {kLeft, kRight})
        if (const Addr child = mem_.load(node + side); child != 0) open.push_back(child);
      release_node(node);
    }
    mem_.release(root_, kRootSize);
  }

  bool get(Bytes key, std::string& value, uint64_t& lsn) const {
    const Addr node = find(Key(key));
    if (node != 0) read_value(mem_, mem_.load(node + kItem), value, lsn);
    return node != 0;
  }

  uint64_t lsn_of(Bytes key) const {
    const Addr node = find(Key(key));
    return node == 0 ? 0 : mem_.load(mem_.load(node + kItem));
  }

  bool put(Bytes key, Bytes value) {
    Path path = start();
    const bool fresh = put_in(path, Key(key), value);
    note_change(mem_, root_, fresh ? 1 : 0, false);
    return fresh;
  }

  bool erase(Bytes key) {
    Path path = start();
    if (!erase_in(path, Key(key))) return false;
    note_change(mem_, root_, -1, true);
    return true;
  }

  // Operations on distinct keys in ascending order: each goes on from the lowest subtree that the one before came
  // through and its key belongs to.
  void apply_sorted(const std::vector<BatchOp>& ops, std::vector<bool>& results) {
    Path path = start();
    results.clear();
    int64_t grown = 0;
    bool changed = false, removed = false;
    for (const BatchOp& op : ops) {
      const Key key(op.key);
      while (path.back().high != 0 && compare(path.back().high, key) <= 0) path.pop_back();
      const bool put = op.kind == BatchOp::put, done = put ? put_in(path, key, op.value) : erase_in(path, key);
      results.push_back(done);
      if (done) grown += put ? 1 : -1;
      changed |= put || done;
      removed |= !put && done;
    }
    if (changed) note_change(mem_, root_, grown, removed);
  }

  uint64_t size() const { return mem_.load(root_ + Root::size); }

  size_t scan(const Range& range, size_t limit, std::vector<Entry>& out) const {
    const Addr nearer = range.reverse ? kRight : kLeft, further = range.reverse ? kLeft : kRight;
    const Key low(range.low), high(range.high);
    const auto below = [&](Addr node) { return range.has_low && compare(node, low) < (range.include_low ? 0 : 1); };
    const auto above = [&](Addr node) { return range.has_high && compare(node, high) > (range.include_high ? 0 : -1); };
    std::vector<Addr> open;  // ancestors still to be visited
    Steps left = steps();
    size_t count = 0;
    for (Addr node = mem_.load(root_ + kTop); count < limit; left.next()) {
      if (node != 0) {
        mem_.touch(node, kNodeSize);
        // A node before the start of the range has nothing of it on its nearer side.
        const bool outside = range.reverse ? above(node) : below(node);
        if (!outside) open.push_back(node);
        node = mem_.load(node + (outside ? further : nearer));
        continue;
      }
      if (open.empty()) break;
      node = open.back();
      open.pop_back();
      if (range.reverse ? below(node) : above(node)) break;
      out.push_back(entry_at(mem_, mem_.load(node + kItem)));
      ++count;
      node = mem_.load(node + further);
    }
    return count;
  }

 private:
  static constexpr size_t kHeld = 4;  // words of the key that a node holds
  static constexpr Addr kLeft = 0, kRight = 8, kItem = 16, kPriority = 24, kKey = 32, kNodeSize = kKey + 8 * kHeld;
  static constexpr Addr kTop = Root::own, kRootSize = Root::own + 8;

  struct Key {
    Bytes bytes;
    std::array<uint64_t, kHeld> words{};  // their order is the order of the bytes
    explicit Key(Bytes key) : bytes(key) {
      std::memcpy(words.data(), key.data(), std::min(key.size(), sizeof(words)));
      for (uint64_t& word : words) word = __builtin_bswap64(word);
    }
  };

  // The way from the top: a word that holds a node or could, and the node whose key bounds what hangs there, 0 if none.
  struct Step {
    Addr link, high;
  };
  using Path = std::vector<Step>;

  Path start() const {
    Path path;
    path.reserve(64);
    path.push_back({root_ + kTop, 0});
    return path;
  }
  Steps steps() const { return Steps(2 * size() + 64); }

  // Sign of the node's key against `key`.
  int compare(Addr node, const Key& key) const {
    for (size_t i = 0; i < kHeld; ++i)
      if (const uint64_t ours = mem_.load(node + kKey + 8 * i); ours != key.words[i]) return ours < key.words[i] ? -1 : 1;
    const Addr item = mem_.load(node + kItem);
    mem_.touch(item, kItemGuess);
    return compare_key(mem_, item, key.bytes);
  }

  Addr find(const Key& key) const {
    Addr node = mem_.load(root_ + kTop);
    for (Steps left = steps(); node != 0; left.next()) {
      mem_.touch(node, kNodeSize);
      const int sign = compare(node, key);
      if (sign == 0) break;
      node = mem_.load(node + (sign > 0 ? kLeft : kRight));
    }
    return node;
  }

  // Goes on from the end of the path to the key, or to the word where it would hang; returns its node or 0.
  Addr descend(Path& path, const Key& key) const {
    for (Addr node; (node = mem_.load(path.back().link)) != 0;) {
      mem_.touch(node, kNodeSize);
      const int sign = compare(node, key);
      if (sign == 0) return node;
      if (sign > 0) path.push_back({node + kLeft, node});
      else path.push_back({node + kRight, path.back().high});
    }
    return 0;
  }

  bool put_in(Path& path, const Key& key, Bytes value) {
    if (const Addr node = descend(path, key); node != 0) {
      const Addr item = mem_.load(node + kItem);
      if (rewrite_item(mem_, item, value)) return false;
      mem_.store(node + kItem, make_item(mem_, key.bytes, value));
      release_item(mem_, item);
      return false;
    }
    // Up to where the nodes above have the higher priorities: what hung there is split around the new node.
    const uint64_t priority = hash_bytes(key.bytes);
    while (path.size() > 1 && mem_.load(mem_.load(path[path.size() - 2].link) + kPriority) < priority) path.pop_back();
    const Addr node = mem_.allocate(kNodeSize), below = mem_.load(path.back().link);
    const uint64_t words[] = {0, 0, make_item(mem_, key.bytes, value), priority};
    mem_.fill(node, words, sizeof(words));
    mem_.fill(node + kKey, key.words.data(), sizeof(key.words));
    split(below, key, node + kLeft, node + kRight);
    mem_.store(path.back().link, node);
    return true;
  }

  bool erase_in(Path& path, const Key& key) {
    const Addr node = descend(path, key);
    if (node == 0) return false;
    merge(path.back().link, mem_.load(node + kLeft), mem_.load(node + kRight));
    release_node(node);
    return true;
  }

  // Hangs the nodes of a tree below `key` on the word `left`, the others on `right`.
  void split(Addr node, const Key& key, Addr left, Addr right) {
    while (node != 0) {
      if (compare(node, key) > 0) {
        mem_.store(right, node);
        right = node + kLeft;
        node = mem_.load(right);
      } else {
        mem_.store(left, node);
        left = node + kRight;
        node = mem_.load(left);
      }
    }
    mem_.store(left, 0);
    mem_.store(right, 0);
  }

  // Hangs two trees, all of the one below all of the other, on the word `link` as one.
  void merge(Addr link, Addr left, Addr right) {
    while (left != 0 && right != 0) {
      if (mem_.load(left + kPriority) >= mem_.load(right + kPriority)) {
        mem_.store(link, left);
        link = left + kRight;
        left = mem_.load(link);
      } else {
        mem_.store(link, right);
        link = right + kLeft;
        right = mem_.load(link);
      }
    }
    mem_.store(link, left != 0 ? left : right);
  }

  void release_node(Addr node) {
    release_item(mem_, mem_.load(node + kItem));
    mem_.release(node, kNodeSize);
  }

  Mem& mem_;
  Addr root_;
};

}  // namespace statepool::store
