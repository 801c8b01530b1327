// Hash table by linear hashing: it grows one bucket at a time, so no operation ever waits for a rehash.
//
// A bucket is a line of eight words: seven slots and the address of an overflow line. A slot is the item's address with
// 16 bits of the key's hash above it, so a lookup touches one line and, nearly always, one item.
//
// Readers of one key watch its part of the table: the keys that agree in the low bits of their hashes, and so lie in the
// same buckets, however far the table has grown.
#pragma once

#include <algorithm>
#include <vector>

#include "../hash.h"
#include "../item.h"

namespace statepool::store {

template <class Mem>
class HashTable {
 public:
  HashTable(Mem& mem, Addr root) : mem_(mem), root_(root) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    const Addr first = mem.allocate(kFirst * kLine);
    for (Addr a = 0; a < kFirst * kLine; a += 8) mem.fill(first + a, uint64_t{0});
    mem.fill(root + kSegments, first);
    mem.fill(root + kBuckets, kFirst);
    return root;
  }

  static uint64_t part_of(Bytes key) { return hash_bytes(key) % kParts; }

  void destroy() {
    for (uint64_t part = 0; part < kParts; ++part) mem_.change(root_, part);
    for (uint64_t b = 0; b < mem_.load(root_ + kBuckets); ++b) {
      each_slot(bucket(b), [&](Addr slot) { release_item(mem_, item_in(mem_.load(slot))); });
      for (Addr line = mem_.load(bucket(b) + kNext), next; line != 0; line = next) {
        next = mem_.load(line + kNext);
        mem_.release(line, kLine);
      }
    }
    for (int s = 0; s < kMaxSegments; ++s)
      if (const Addr segment = mem_.load(root_ + kSegments + 8 * s); segment != 0) mem_.release(segment, segment_size(s));
    mem_.release(root_, kRootSize);
  }

  bool get(Bytes key, std::string& value, uint64_t& lsn) const {
    const Addr slot = find(key, hash_bytes(key));
    if (slot == 0) return false;
    read_value(mem_, item_in(mem_.load(slot)), value, lsn);
    return true;
  }

  // Of the operation that wrote the entry; 0 if there is none.
  uint64_t lsn_of(Bytes key) const {
    const Addr slot = find(key, hash_bytes(key));
    return slot == 0 ? 0 : item_at(mem_, item_in(mem_.load(slot))).lsn;
  }

  // True if the key is new.
  bool put(Bytes key, Bytes value) {
    const uint64_t hash = hash_bytes(key);
    change_bucket(index(hash));
    if (const Addr slot = find(key, hash); slot != 0) {
      const uint64_t word = mem_.load(slot);
      if (!rewrite_item(mem_, item_in(word), value)) {
        mem_.store(slot, make_item(mem_, key, value) | (word & kTag));
        release_item(mem_, item_in(word));
      }
      note_change(mem_, root_, 0, false);
      return false;
    }
    insert(make_item(mem_, key, value), hash);
    note_change(mem_, root_, 1, false);
    if (mem_.load(root_ + Root::size) > mem_.load(root_ + kBuckets) * kFill) split();
    return true;
  }

  bool erase(Bytes key) {
    const uint64_t hash = hash_bytes(key);
    const Addr slot = find(key, hash);
    if (slot == 0) return false;
    change_bucket(index(hash));
    release_item(mem_, item_in(mem_.load(slot)));
    // The last slot of the chain fills the gap, so that chains stay without holes.
    Addr last = 0;
    each_slot(bucket(index(hash)), [&](Addr s) { last = s; });
    mem_.store(slot, mem_.load(last));
    mem_.store(last, 0);
    note_change(mem_, root_, -1, true);
    return true;
  }

  // Asks for what an operation on the key will look at: first the bucket of each of many keys, then the items there.
  void ask_for_bucket(Bytes key) const { mem_.touch(bucket(index(hash_bytes(key))), kLine); }
  void ask_for_item(Bytes key) const {
    const uint64_t hash = hash_bytes(key);
    const Addr line = bucket(index(hash));
    for (uint64_t i = 0; i < kSlots; ++i) {
      const uint64_t word = mem_.load(line + 8 * i);
      if (word != 0 && ((word ^ hash) & kTag) == 0) mem_.touch(item_in(word), kItemGuess);
    }
  }

  uint64_t size() const { return mem_.load(root_ + Root::size); }

  // The items of bucket `cursor` and on, at least one unless the table ends there; returns the next cursor, 0 at the end.
  uint64_t scan(uint64_t cursor, std::vector<Entry>& out) const {
    const uint64_t buckets = mem_.load(root_ + kBuckets);
    while (cursor < buckets && out.empty()) {
      each_slot(bucket(cursor), [&](Addr slot) { out.push_back(entry_at(mem_, item_in(mem_.load(slot)))); });
      ++cursor;
    }
    return cursor < buckets ? cursor : 0;
  }

 private:
  static constexpr uint64_t kLine = 64, kSlots = 7, kFirst = 16, kFill = 4;
  static constexpr Addr kNext = kSlots * 8;
  static constexpr uint64_t kTag = uint64_t{0xffff} << 48;
  static constexpr int kMaxSegments = 40;
  static constexpr Addr kBuckets = Root::own, kSegments = Root::own + 8, kRootSize = kSegments + 8 * kMaxSegments;

  static Addr item_in(uint64_t slot) { return slot & ~kTag; }
  static uint64_t segment_size(int s) { return (s == 0 ? kFirst : kFirst << (s - 1)) * kLine; }

  // Segment 0 holds the first kFirst buckets; each further one doubles what there is.
  Addr bucket(uint64_t b) const {
    if (b < kFirst) return mem_.load(root_ + kSegments) + b * kLine;
    const int s = 64 - __builtin_clzll(b / kFirst);
    return mem_.load(root_ + kSegments + 8 * s) + (b - (kFirst << (s - 1))) * kLine;
  }

  uint64_t index(uint64_t hash) const {
    const uint64_t buckets = mem_.load(root_ + kBuckets);
    if (buckets == 0) throw Torn{};
    const uint64_t low = uint64_t{1} << (63 - __builtin_clzll(buckets));  // buckets at the start of this doubling
    const uint64_t wide = hash & (2 * low - 1);
    return wide < buckets ? wide : hash & (low - 1);
  }

  // Its readers retry: those of every part that has keys in it. A table of few buckets has many parts in each.
  void change_bucket(uint64_t b) {
    const uint64_t low = uint64_t{1} << (63 - __builtin_clzll(mem_.load(root_ + kBuckets)));
    for (uint64_t part = b % std::min(low, kParts); part < kParts; part += std::min(low, kParts)) mem_.change(root_, part);
  }

  // Address of the slot that holds the key, 0 if none does.
  Addr find(Bytes key, uint64_t hash) const {
    for (Addr line = bucket(index(hash)); line != 0; line = mem_.load(line + kNext)) {
      mem_.touch(line, kLine);
      for (uint64_t i = 0; i < kSlots; ++i) {
        const uint64_t word = mem_.load(line + 8 * i);
        if (word == 0) return 0;
        if (((word ^ hash) & kTag) != 0) continue;
        mem_.touch(item_in(word), kItemGuess);
        if (compare_key(mem_, item_in(word), key) == 0) return line + 8 * i;
      }
    }
    return 0;
  }

  template <class Visit>
  void each_slot(Addr line, Visit&& visit) const {
    for (; line != 0; line = mem_.load(line + kNext)) {
      mem_.touch(line, kLine);
      for (uint64_t i = 0; i < kSlots; ++i) {
        if (mem_.load(line + 8 * i) == 0) return;
        visit(line + 8 * i);
      }
    }
  }

  void insert(Addr item, uint64_t hash) {
    const uint64_t word = item | (hash & kTag);
    for (Addr line = bucket(index(hash));;) {
      mem_.touch(line, kLine);
      for (uint64_t i = 0; i < kSlots; ++i)
        if (mem_.load(line + 8 * i) == 0) return mem_.store(line + 8 * i, word);
      const Addr next = mem_.load(line + kNext);
      if (next != 0) {
        line = next;
        continue;
      }
      const Addr fresh = mem_.allocate(kLine);
      mem_.fill(fresh, word);
      for (Addr a = 8; a < kLine; a += 8) mem_.fill(fresh + a, uint64_t{0});
      return mem_.store(line + kNext, fresh);
    }
  }

  // Adds one bucket and moves to it the items of its lower half that now belong there.
  void split() {
    const uint64_t buckets = mem_.load(root_ + kBuckets);
    const uint64_t low = uint64_t{1} << (63 - __builtin_clzll(buckets));
    if (buckets == low) {
      const int s = 64 - __builtin_clzll(buckets / kFirst);
      mem_.store(root_ + kSegments + 8 * s, mem_.allocate(segment_size(s)));
    }
    change_bucket(buckets - low);
    const Addr from = bucket(buckets - low), to = bucket(buckets);
    std::vector<uint64_t> words;
    each_slot(from, [&](Addr slot) { words.push_back(mem_.load(slot)); });
    for (Addr line = mem_.load(from + kNext), next; line != 0; line = next) {
      next = mem_.load(line + kNext);
      mem_.release(line, kLine);
    }
    const uint64_t empty[kLine / 8] = {};
    mem_.write(from, empty, kLine);
    mem_.fill(to, empty, kLine);
    mem_.store(root_ + kBuckets, buckets + 1);
    for (const uint64_t word : words) insert(item_in(word), hash_bytes(key_of(mem_, item_in(word))));
  }

  Mem& mem_;
  Addr root_;
};

}  // namespace statepool::store
