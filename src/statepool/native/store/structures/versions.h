// What both multi-version structures keep beside their nodes: the current version and what earlier ones left behind.
//
// A version is the lsn of the operation that made it. Nodes and items that a committed version has are never written
// to; a change copies what it must, once in each transaction, and publishes a record {node, size, version}, the address
// by which a reader holds a snapshot. What a version replaced is retired, not freed: it waits in a list, oldest first,
// until no pinned version is old enough to see it.
#pragma once

#include <algorithm>
#include <vector>

#include "../item.h"

namespace statepool::store {

template <class Mem>
class Versions {
 public:
  enum Kind : uint64_t { node = 1, item = 2, record = 3 };
  static constexpr Addr kRootSize = Root::own + 40;

  Versions(Mem& mem, Addr root, size_t node_size) : mem_(mem), root_(root), node_size_(node_size) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    const Addr first = mem.allocate(kChunk);
    mem.fill(first, uint64_t{0});
    mem.fill(root + kHead, first);
    mem.fill(root + kTail, first);
    mem.fill(root + kCurrent, make_record(mem, 0, 0));
    return root;
  }

  Addr current() const { return mem_.load(root_ + kCurrent); }
  Addr node_of(Addr snapshot) const { return mem_.load(snapshot); }
  uint64_t size_of(Addr snapshot) const { return mem_.load(snapshot + 8); }
  uint64_t version_of(Addr snapshot) const { return mem_.load(snapshot + 16); }

  // An operation starts: what one that failed had collected is forgotten.
  void begin() {
    retired_.clear();
    unseen_.clear();
  }

  // What is no longer part of the structure. publish() frees what this transaction itself had made and retires the rest.
  void drop_node(Addr a, uint64_t made_in) { drop(a, node, made_in); }
  void drop_item(Addr a) { drop(a, item, mem_.load(a)); }

  // The change is complete: `top` is the node of the version lsn().
  void publish(Addr top, int64_t grown) {
    const Addr before = current();
    const uint64_t size = size_of(before) + static_cast<uint64_t>(grown);
    if (mem_.unseen(version_of(before))) {
      const uint64_t words[] = {top, size, mem_.lsn()};
      mem_.fill(before, words, sizeof(words));
    } else {
      mem_.store(root_ + kCurrent, make_record(mem_, top, size));
      retired_.push_back(before | record);
    }
    append();
  }

  // Frees what was replaced in versions up to `oldest_pinned`, at most `limit` objects; returns how many.
  size_t collect(uint64_t oldest_pinned, size_t limit) {
    uint64_t at = mem_.load(root_ + kHeadIndex);
    Addr chunk = mem_.load(root_ + kHead);
    const Addr first = chunk, tail = mem_.load(root_ + kTail);
    const uint64_t end = mem_.load(root_ + kTailIndex), begin = at;
    size_t freed = 0;
    for (; freed < limit; ++freed, ++at) {
      if (at == kEntries && chunk != tail) {
        const Addr next = mem_.load(chunk);
        mem_.release(chunk, kChunk);
        chunk = next;
        at = 0;
      }
      if (chunk == tail && at == end) break;
      const Addr entry = chunk + 8 + 16 * at;
      if (mem_.load(entry + 8) > oldest_pinned) break;
      release(mem_.load(entry));
    }
    if (at != begin || chunk != first) {
      mem_.store(root_ + kHead, chunk);
      mem_.store(root_ + kHeadIndex, at);
    }
    return freed;
  }

  // Objects that wait to be freed.
  uint64_t retired() const {
    uint64_t count = mem_.load(root_ + kTailIndex) - mem_.load(root_ + kHeadIndex);
    const Addr tail = mem_.load(root_ + kTail);
    for (Addr chunk = mem_.load(root_ + kHead); chunk != tail; chunk = mem_.load(chunk)) count += kEntries;
    return count;
  }

  // Frees all but the nodes and items of the current version, which the structure has freed before.
  void destroy() {
    collect(~uint64_t{0}, ~size_t{0});
    mem_.release(mem_.load(root_ + kHead), kChunk);
    mem_.release(current(), kRecord);
    mem_.release(root_, kRootSize);
  }

 private:
  // A chunk of the list: the address of the next one, then entries {object with its kind in the low bits, version}.
  static constexpr size_t kChunk = 1024, kEntries = (kChunk - 8) / 16, kRecord = 24;
  static constexpr Addr kCurrent = Root::own, kHead = kCurrent + 8, kTail = kHead + 8, kHeadIndex = kTail + 8,
                        kTailIndex = kHeadIndex + 8;

  static Addr make_record(Mem& mem, Addr top, uint64_t size) {
    const uint64_t words[] = {top, size, mem.lsn()};
    const Addr a = mem.allocate(kRecord);
    mem.fill(a, words, sizeof(words));
    return a;
  }

  void drop(Addr a, Kind kind, uint64_t made_in) {
    (mem_.unseen(made_in) ? unseen_ : retired_).push_back(a | kind);
  }

  void release(uint64_t tagged) {
    const Addr a = tagged & ~uint64_t{7};
    switch (tagged & 7) {
      case node: return mem_.release(a, node_size_);
      case item: return release_item(mem_, a);
      default: return mem_.release(a, kRecord);
    }
  }

  void append() {
    for (const uint64_t tagged : unseen_) release(tagged);
    unseen_.clear();
    Addr chunk = mem_.load(root_ + kTail);
    uint64_t at = mem_.load(root_ + kTailIndex);
    uint64_t words[2 * kEntries];
    for (size_t done = 0; done < retired_.size();) {
      if (at == kEntries) {
        const Addr fresh = mem_.allocate(kChunk);
        mem_.fill(fresh, uint64_t{0});
        mem_.store(chunk, fresh);
        mem_.store(root_ + kTail, fresh);
        chunk = fresh;
        at = 0;
      }
      const size_t n = std::min<size_t>(kEntries - at, retired_.size() - done);
      for (size_t i = 0; i < n; ++i) words[2 * i] = retired_[done + i], words[2 * i + 1] = mem_.lsn();
      mem_.write(chunk + 8 + 16 * at, words, 16 * n);
      done += n;
      at += n;
    }
    mem_.store(root_ + kTailIndex, at);
    retired_.clear();
  }

  Mem& mem_;
  Addr root_;
  size_t node_size_;
  std::vector<uint64_t> retired_, unseen_;
};

}  // namespace statepool::store
