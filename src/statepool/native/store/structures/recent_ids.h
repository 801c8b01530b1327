// Deduplication ids of a queue: those of its items, and those of the last kRemembered items that left it.
#pragma once

#include <string>

#include "hash_table.h"
#include "segments.h"

namespace statepool::store {

template <class Mem>
class RecentIds {
 public:
  static constexpr uint64_t kRemembered = 65536;
  static constexpr Addr kWords = 16 + Segments<Mem>::kWords;  // that it takes in the root of its owner

  RecentIds(Mem& mem, Addr at) : mem_(mem), at_(at), ring_(mem, at + kRing, kChunk * 8) {}

  static void create(Mem& mem, Addr at) { mem.fill(at + kTable, HashTable<Mem>::create(mem)); }

  void destroy() {
    const uint64_t count = std::min(mem_.load(at_ + kLeft), kRemembered);
    for (uint64_t i = 0; i < count; ++i) release_item(mem_, mem_.load(place(i)));
    ring_.destroy(0, (count + kChunk - 1) / kChunk);
    table().destroy();
  }

  bool known(Bytes id, uint64_t& sequence) const {
    std::string value;
    uint64_t lsn = 0;
    if (!table().get(id, value, lsn)) return false;
    if (value.size() != 8) throw Torn{};
    sequence = load_as<uint64_t>(value.data());
    return true;
  }

  void add(Bytes id, uint64_t sequence) { table().put(id, {reinterpret_cast<const char*>(&sequence), 8}); }

  // The item of that id has left the queue; the id that did so kRemembered items ago is forgotten.
  void retire(Bytes id) {
    const uint64_t left = mem_.load(at_ + kLeft), i = left % kRemembered;
    if (left >= kRemembered) {
      const Addr oldest = mem_.load(place(i));
      mem_.touch(oldest, kItemGuess);
      table().erase(key_of(mem_, oldest));
      release_item(mem_, oldest);
    } else if (i % kChunk == 0) {
      ring_.add(i / kChunk, 0);
    }
    mem_.store(place(i), make_item(mem_, id, {}));
    mem_.store(at_ + kLeft, left + 1);
  }

 private:
  // kTable: root of a table from ids to numbers. kLeft: how many have left. kRing: their ids in that order, as items, in
  // chunks that are added when they are reached.
  static constexpr Addr kTable = 0, kLeft = 8, kRing = 16;
  static constexpr uint64_t kChunk = 1024;

  HashTable<Mem> table() const { return {mem_, mem_.load(at_ + kTable)}; }
  Addr place(uint64_t i) const {
    const Addr at = ring_[i / kChunk] + 8 * (i % kChunk);
    mem_.touch(at, 8);
    return at;
  }

  Mem& mem_;
  Addr at_;
  Segments<Mem> ring_;
};

}  // namespace statepool::store
