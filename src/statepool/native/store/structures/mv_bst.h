// Multi-version binary search tree: a treap whose nodes are never changed once their version is complete (versions.h).
//
// A node's priority is the hash of its key, so the shape depends on the keys alone and its depth is logarithmic unless
// someone searches for keys against it. The first 16 bytes of the key are in the node: most comparisons on the way
// down touch no item. A batch splits at each node into what lies left and right of it: each node is copied once.
#pragma once

#include "../hash.h"
#include "versioned.h"

namespace statepool::store {

template <class Mem>
class MvBst : public Versioned<MvBst<Mem>, Mem> {
  using Base = Versioned<MvBst<Mem>, Mem>;
  friend Base;

 public:
  using Base::current;
  MvBst(Mem& mem, Addr root) : Base(mem, root, kNode) {}

  // Snapshots end with it.
  void destroy() {
    Way way;
    for (descend(way, versions_.node_of(current()), kLeft); !way.empty();) {
      const Addr at = way.back();
      way.pop_back();
      descend(way, mem_.load(at + kRight), kLeft);
      release_item(mem_, mem_.load(at + kItem));
      mem_.release(at, kNode);
    }
    versions_.destroy();
  }

  size_t scan_at(Addr snapshot, const Range& range, size_t limit, std::vector<Entry>& out) const {
    Way way;
    seek(way, versions_.node_of(snapshot), range);
    const Bytes last = range.reverse ? range.low : range.high;
    const bool bounded = range.reverse ? range.has_low : range.has_high;
    const bool with_last = range.reverse ? range.include_low : range.include_high;
    const int sense = range.reverse ? -1 : 1;
    size_t n = 0;
    for (; n < limit && !way.empty(); ++n) {
      const Addr at = way.back();
      way.pop_back();
      const Addr item = mem_.load(at + kItem);
      mem_.touch(item, kItemGuess);
      Entry entry = entry_at(mem_, item);
      // Keys that do not ascend are links read torn, which may lead in a circle.
      if (n > 0 && entry.key.compare(out.back().key) * sense <= 0) throw Torn{};
      if (bounded && Bytes(entry.key).compare(last) * sense >= (with_last ? 1 : 0)) break;
      out.push_back(std::move(entry));
      descend(way, mem_.load(at + (range.reverse ? kLeft : kRight)), range.reverse ? kRight : kLeft);
    }
    return n;
  }

 private:
  using Base::mem_, Base::root_, Base::versions_;
  using typename Base::Batch;

  static constexpr size_t kNode = 64;
  static constexpr Addr kLeft = 0, kRight = 8, kItem = 16, kHead = 24, kTail = 32, kPriority = 40, kVersion = 48;
  // Far beyond what keys reach that nobody chose for it; writers refuse to go deeper.
  static constexpr size_t kMaxDepth = 4096;

  struct Node {
    Addr left, right, item;
    uint64_t head, tail;  // the first 16 key bytes as numbers
    uint64_t priority, version, unused;
  };
  static_assert(sizeof(Node) == kNode);

  struct Probe {
    explicit Probe(Bytes key) : key(key), head(word(key, 0)), tail(word(key, 8)) {}
    static uint64_t word(Bytes key, size_t from) {
      uint64_t bytes = 0;
      if (from < key.size()) std::memcpy(&bytes, key.data() + from, std::min<size_t>(8, key.size() - from));
      return __builtin_bswap64(bytes);
    }
    Bytes key;
    uint64_t head, tail;
  };

  using Way = std::vector<Addr>;

  // Sign of the node's key against the probe's.
  int compare(Addr at, const Probe& probe) const {
    const uint64_t head = mem_.load(at + kHead);
    if (head != probe.head) return head < probe.head ? -1 : 1;
    const uint64_t tail = mem_.load(at + kTail);
    if (tail != probe.tail) return tail < probe.tail ? -1 : 1;
    const Addr item = mem_.load(at + kItem);
    mem_.touch(item, kItemGuess);
    return compare_key(mem_, item, probe.key);
  }

  Addr find(Addr snapshot, Bytes key) const {
    const Probe probe(key);
    Addr at = versions_.node_of(snapshot);
    for (size_t depth = 0; at != 0; ++depth) {
      if (depth > 4 * kMaxDepth) throw Torn{};
      mem_.touch(at, kNode);
      const int sign = compare(at, probe);
      if (sign == 0) return mem_.load(at + kItem);
      at = mem_.load(at + (sign > 0 ? kLeft : kRight));
    }
    return 0;
  }

  // Puts on the way the node and all that follow it along one side.
  void descend(Way& way, Addr at, Addr side) const {
    for (; at != 0; at = mem_.load(at + side)) {
      if (way.size() > 4 * kMaxDepth) throw Torn{};
      mem_.touch(at, kNode);
      way.push_back(at);
    }
  }

  // Puts on the way those nodes whose turn in the range's direction is still to come, the nearest one last.
  void seek(Way& way, Addr at, const Range& range) const {
    const Addr near = range.reverse ? kRight : kLeft, far = range.reverse ? kLeft : kRight;
    if (!(range.reverse ? range.has_high : range.has_low)) return descend(way, at, near);
    const Probe probe(range.reverse ? range.high : range.low);
    const int outside = (range.reverse ? range.include_high : range.include_low) ? 0 : 1;
    for (size_t depth = 0; at != 0; ++depth) {
      if (depth > 4 * kMaxDepth) throw Torn{};
      mem_.touch(at, kNode);
      const bool inside = compare(at, probe) * (range.reverse ? -1 : 1) >= outside;
      if (inside) way.push_back(at);
      at = mem_.load(at + (inside ? near : far));
    }
  }

  void apply(Batch& batch, size_t count) {
    versions_.begin();
    const Addr top = apply_node(batch, versions_.node_of(current()), 0, count, 0);
    if (!batch.changed) return;
    versions_.publish(top, batch.grown);
    note_change(mem_, root_, batch.grown, batch.removed);
  }

  Node node_at(Addr at) const {
    Node node;
    mem_.touch(at, kNode);
    mem_.read(at, &node, kNode);
    return node;
  }

  // The subtree with operations [from, to) applied.
  Addr apply_node(Batch& batch, Addr at, size_t from, size_t to, size_t depth) {
    if (from == to) return at;
    if (at == 0) return build(batch, from, to);
    if (depth > kMaxDepth) throw StoreError(Fault::full, "tree: these keys make it too deep");
    Node node = node_at(at);
    size_t middle = from, rest = to;  // operations left of the node end at middle, those right of it begin at rest
    for (int sign = 1; middle < rest;) {
      const size_t k = middle + (rest - middle) / 2;
      sign = compare(at, Probe(batch.ops[k].key));
      if (sign > 0) middle = k + 1;
      if (sign < 0) rest = k;
      if (sign == 0) {
        middle = k;
        rest = k + 1;
        break;
      }
    }
    const bool match = middle < rest;
    const Addr left = apply_node(batch, node.left, from, middle, depth + 1);
    const Addr right = apply_node(batch, node.right, rest, to, depth + 1);
    if (match && batch.ops[middle].kind == BatchOp::erase) {
      note(batch, middle, true);
      versions_.drop_item(node.item);
      versions_.drop_node(at, node.version);
      return merge(left, right);
    }
    if (match) {
      note(batch, middle, false);
      versions_.drop_item(node.item);
      node.item = make_item(mem_, batch.ops[middle].key, batch.ops[middle].value);
    } else if (left == node.left && right == node.right) {
      return at;
    }
    return join(at, node, left, right);
  }

  void note(Batch& batch, size_t k, bool done) {
    const bool put = batch.ops[k].kind == BatchOp::put;
    batch.changed = true;
    (*batch.results)[k] = done;
    if (done) batch.grown += put ? 1 : -1;
    batch.removed |= !put;
  }

  // A tree of the puts among operations [from, to).
  Addr build(Batch& batch, size_t from, size_t to) {
    if (to - from > 1) {
      const size_t middle = from + (to - from) / 2;
      const Addr left = build(batch, from, middle);
      return merge(left, build(batch, middle, to));
    }
    const BatchOp& op = batch.ops[from];
    if (op.kind == BatchOp::erase) return 0;
    note(batch, from, true);
    const Probe probe(op.key);
    return copy({0, 0, make_item(mem_, op.key, op.value), probe.head, probe.tail, hash_bytes(op.key), 0, 0});
  }

  Addr copy(Node node) {
    node.version = mem_.lsn();
    const Addr at = mem_.allocate(kNode);
    mem_.fill(at, &node, kNode);
    return at;
  }

  // `node`, which was read at `at`, with other children or another item: in place if this transaction made it.
  Addr replace(Addr at, const Node& node) {
    if (!mem_.unseen(node.version)) {
      versions_.drop_node(at, node.version);
      return copy(node);
    }
    mem_.fill(at, &node, 3 * 8);
    return at;
  }

  // The node with all of `left` before it and all of `right` behind it, none of them of a higher priority than what
  // comes to stand above it.
  Addr join(Addr at, Node& node, Addr left, Addr right) {
    const uint64_t of_left = left == 0 || left == node.left ? 0 : mem_.load(left + kPriority);
    const uint64_t of_right = right == 0 || right == node.right ? 0 : mem_.load(right + kPriority);
    if (of_left <= node.priority && of_right <= node.priority) {
      node.left = left;
      node.right = right;
      return replace(at, node);
    }
    if (of_left > of_right) {
      Node above = node_at(left);
      above.right = join(at, node, above.right, right);
      return replace(left, above);
    }
    Node above = node_at(right);
    above.left = join(at, node, left, above.left);
    return replace(right, above);
  }

  // One tree of two, all keys of `left` before those of `right`.
  Addr merge(Addr left, Addr right) {
    if (left == 0 || right == 0) return left + right;
    if (mem_.load(left + kPriority) >= mem_.load(right + kPriority)) {
      Node node = node_at(left);
      node.right = merge(node.right, right);
      return replace(left, node);
    }
    Node node = node_at(right);
    node.left = merge(left, node.left);
    return replace(right, node);
  }
};

}  // namespace statepool::store
