// Binary search tree: a treap whose priorities are the hashes of its keys, so that its shape depends on the keys alone.
#pragma once

#include <array>
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
    const Addr node = find(Probe(key));
    if (node == 0) return false;
    read_value(mem_, mem_.load(node + kItem), value, lsn);
    return true;
  }

  uint64_t lsn_of(Bytes key) const {
    const Addr node = find(Probe(key));
    return node == 0 ? 0 : item_at(mem_, mem_.load(node + kItem)).lsn;
  }

  bool put(Bytes key, Bytes value) {
    const Probe probe(key);
    if (const Addr node = find(probe); node != 0) {
      const Addr item = mem_.load(node + kItem);
      if (!rewrite_item(mem_, item, value)) {
        mem_.store(node + kItem, make_item(mem_, key, value));
        release_item(mem_, item);
      }
      note_change(mem_, root_, 0, false);
      return false;
    }
    // The new node hangs where the priorities of the search path fall below its own; what was there is split by its key.
    const uint64_t priority = hash_bytes(key);
    Addr link = root_ + kTop, node;
    while ((node = mem_.load(link)) != 0 && mem_.load(node + kPriority) >= priority) link = node + side(node, probe);
    const Addr fresh = mem_.allocate(kNodeSize);
    const uint64_t words[] = {0, 0, make_item(mem_, key, value), priority};
    mem_.fill(fresh, words, sizeof(words));
    mem_.fill(fresh + kPrefix, probe.prefix.data(), 8 * kPrefixWords);
    split(node, probe, fresh + kLeft, fresh + kRight);
    mem_.store(link, fresh);
    note_change(mem_, root_, 1, false);
    return true;
  }

  bool erase(Bytes key) {
    const Probe probe(key);
    Addr link = root_ + kTop, node;
    for (Steps steps(*this); (node = mem_.load(link)) != 0; steps.next()) {
      const int sign = compare(node, probe);
      if (sign == 0) break;
      link = node + (sign > 0 ? kLeft : kRight);
    }
    if (node == 0) return false;
    merge(link, mem_.load(node + kLeft), mem_.load(node + kRight));
    release_node(node);
    note_change(mem_, root_, -1, true);
    return true;
  }

  uint64_t size() const {
    mem_.touch(root_, kRootSize);
    return mem_.load(root_ + Root::size);
  }

  size_t scan(const Range& range, size_t limit, std::vector<Entry>& out) const {
    const Addr nearer = range.reverse ? kRight : kLeft, further = range.reverse ? kLeft : kRight;
    const Ends ends(range);
    std::vector<Addr> open;  // ancestors still to be visited
    Steps steps(*this);
    size_t count = 0;
    for (Addr node = mem_.load(root_ + kTop); count < limit; steps.next()) {
      if (node != 0) {
        mem_.touch(node, kNodeSize);
        // A node before the start of the range has nothing of it on its nearer side.
        const bool outside = range.reverse ? above(node, ends) : below(node, ends);
        if (!outside) open.push_back(node);
        node = mem_.load(node + (outside ? further : nearer));
        continue;
      }
      if (open.empty()) break;
      node = open.back();
      open.pop_back();
      if (range.reverse ? below(node, ends) : above(node, ends)) break;
      mem_.touch(mem_.load(node + kItem), kItemGuess);
      out.push_back(entry_at(mem_, mem_.load(node + kItem)));
      ++count;
      node = mem_.load(node + further);
    }
    return count;
  }

 private:
  // A node is one line of memory, and holds as much of its key as fits.
  static constexpr size_t kPrefixWords = 4;
  static constexpr Addr kLeft = 0, kRight = 8, kItem = 16, kPriority = 24, kPrefix = 32,
                        kNodeSize = kPrefix + 8 * kPrefixWords;
  static constexpr Addr kTop = Root::own, kRootSize = Root::own + 8;

  // A key that is looked for, and its start as numbers.
  struct Probe {
    explicit Probe(Bytes k) : key(k) {
      for (size_t i = 0; i < kPrefixWords; ++i) prefix[i] = prefix_of(k, 8 * i);
    }
    Bytes key;
    std::array<uint64_t, kPrefixWords> prefix;
  };

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

  // Sign of the node's key against the one looked for; most are decided by what the node has of it.
  int compare(Addr node, const Probe& probe) const {
    mem_.touch(node, kNodeSize);
    for (size_t i = 0; i < kPrefixWords; ++i)
      if (const uint64_t ours = mem_.load(node + kPrefix + 8 * i); ours != probe.prefix[i])
        return ours < probe.prefix[i] ? -1 : 1;
    mem_.touch(mem_.load(node + kItem), kItemGuess);
    return compare_key(mem_, mem_.load(node + kItem), probe.key);
  }
  Addr side(Addr node, const Probe& probe) const { return compare(node, probe) > 0 ? kLeft : kRight; }

  // The ends of a range, as what a walk compares nodes with.
  struct Ends {
    explicit Ends(const Range& r) : range(r), low(r.low), high(r.high) {}
    const Range& range;
    Probe low, high;
  };
  bool below(Addr node, const Ends& e) const {
    if (!e.range.has_low) return false;
    const int sign = compare(node, e.low);
    return sign < 0 || (sign == 0 && !e.range.include_low);
  }
  bool above(Addr node, const Ends& e) const {
    if (!e.range.has_high) return false;
    const int sign = compare(node, e.high);
    return sign > 0 || (sign == 0 && !e.range.include_high);
  }

  Addr find(const Probe& probe) const {
    Addr node = mem_.load(root_ + kTop);
    for (Steps steps(*this); node != 0; steps.next()) {
      const int sign = compare(node, probe);
      if (sign == 0) return node;
      node = mem_.load(node + (sign > 0 ? kLeft : kRight));
    }
    return 0;
  }

  // Hangs the nodes of a tree below the key on the word `left`, the others on `right`.
  void split(Addr node, const Probe& probe, Addr left, Addr right) {
    while (node != 0) {
      if (side(node, probe) == kLeft) {
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
      mem_.touch(left, kNodeSize);
      mem_.touch(right, kNodeSize);
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
