// Binary search tree: a treap whose priorities are the hashes of its keys, so that its shape depends on the keys alone.
#pragma once

#include <vector>

#include "../hash.h"
#include "../item.h"
#include "range.h"

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
    const Addr node = find(key);
    if (node == 0) return false;
    read_value(mem_, mem_.load(node + kItem), value, lsn);
    return true;
  }

  uint64_t lsn_of(Bytes key) const {
    const Addr node = find(key);
    return node == 0 ? 0 : item_at(mem_, mem_.load(node + kItem)).lsn;
  }

  bool put(Bytes key, Bytes value) {
    if (const Addr node = find(key); node != 0) {
      const Addr item = mem_.load(node + kItem);
      if (!rewrite_item(mem_, item, value)) {
        mem_.store(node + kItem, make_item(mem_, key, value));
        release_item(mem_, item);
      }
      note_change(mem_, root_, 0, false);
      return false;
    }
    const uint64_t priority = hash_bytes(key);
    Addr link = root_ + kTop;  // the word that will point at the new node
    for (Addr node; (node = mem_.load(link)) != 0 && mem_.load(node + kPriority) >= priority;)
      link = node + (before(key, node) ? kLeft : kRight);
    const Addr fresh = mem_.allocate(kNodeSize), below = mem_.load(link);
    mem_.fill(fresh + kItem, make_item(mem_, key, value));
    mem_.fill(fresh + kPriority, priority);
    mem_.fill(fresh + kPrefix, prefix_of(key));
    mem_.fill(fresh + kLeft, uint64_t{0});
    mem_.fill(fresh + kRight, uint64_t{0});
    split(below, key, fresh + kLeft, fresh + kRight);
    mem_.store(link, fresh);
    note_change(mem_, root_, 1, false);
    return true;
  }

  bool erase(Bytes key) {
    Addr link = root_ + kTop, node;
    for (Steps steps(*this); (node = mem_.load(link)) != 0; steps.next()) {
      const int sign = compare(node, key);
      if (sign == 0) break;
      link = node + (sign > 0 ? kLeft : kRight);
    }
    if (node == 0) return false;
    merge(link, mem_.load(node + kLeft), mem_.load(node + kRight));
    release_node(node);
    note_change(mem_, root_, -1, true);
    return true;
  }

  uint64_t size() const { return mem_.load(root_ + Root::size); }

  size_t scan(const Range& range, size_t limit, std::vector<Entry>& out) const {
    const Addr nearer = range.reverse ? kRight : kLeft, further = range.reverse ? kLeft : kRight;
    std::vector<Addr> open;  // ancestors still to be visited
    Steps steps(*this);
    size_t count = 0;
    for (Addr node = mem_.load(root_ + kTop); count < limit; steps.next()) {
      if (node != 0) {
        mem_.touch(node, kNodeSize);
        // A node before the start of the range has nothing of it on its nearer side.
        const bool outside = range.reverse ? above(node, range) : below(node, range);
        if (!outside) open.push_back(node);
        node = mem_.load(node + (outside ? further : nearer));
        continue;
      }
      if (open.empty()) break;
      node = open.back();
      open.pop_back();
      if (range.reverse ? below(node, range) : above(node, range)) break;
      out.push_back(entry_at(mem_, mem_.load(node + kItem)));
      ++count;
      node = mem_.load(node + further);
    }
    return count;
  }

 private:
  static constexpr Addr kLeft = 0, kRight = 8, kItem = 16, kPriority = 24, kPrefix = 32, kNodeSize = 48;
  static constexpr Addr kTop = Root::own, kRootSize = Root::own + 8;

  // Ends a walk that a changing tree leads around in circles.
  class Steps {
   public:
    explicit Steps(const Bst& tree) : left_(2 * tree.size() + 64) {}
    void next() {
      if (left_-- == 0) throw Torn{};
    }

   private:
    uint64_t left_;
  };

  static uint64_t prefix_of(Bytes key) {
    uint64_t word = 0;
    std::memcpy(&word, key.data(), std::min<size_t>(8, key.size()));
    return __builtin_bswap64(word);
  }

  // Sign of the node's key against `key`; most are decided by their first eight bytes, which the node holds.
  int compare(Addr node, Bytes key) const {
    mem_.touch(node, kNodeSize);
    const uint64_t ours = mem_.load(node + kPrefix), theirs = prefix_of(key);
    if (ours != theirs) return ours < theirs ? -1 : 1;
    mem_.touch(mem_.load(node + kItem), kItemGuess);
    return compare_key(mem_, mem_.load(node + kItem), key);
  }
  bool before(Bytes key, Addr node) const { return compare(node, key) > 0; }

  bool below(Addr node, const Range& r) const {
    if (!r.has_low) return false;
    const int sign = compare(node, r.low);
    return sign < 0 || (sign == 0 && !r.include_low);
  }
  bool above(Addr node, const Range& r) const {
    if (!r.has_high) return false;
    const int sign = compare(node, r.high);
    return sign > 0 || (sign == 0 && !r.include_high);
  }

  Addr find(Bytes key) const {
    Addr node = mem_.load(root_ + kTop);
    for (Steps steps(*this); node != 0; steps.next()) {
      const int sign = compare(node, key);
      if (sign == 0) return node;
      node = mem_.load(node + (sign > 0 ? kLeft : kRight));
    }
    return 0;
  }

  // Hangs the nodes of a tree below `key` on the word `left`, the others on `right`.
  void split(Addr node, Bytes key, Addr left, Addr right) {
    while (node != 0) {
      if (before(key, node)) {
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
