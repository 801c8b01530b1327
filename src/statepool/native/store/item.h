// A key and its value as one object. Dictionaries differ in how they find items, not in what an item is.
//
//   0  u64 lsn      of the operation that wrote it
//   8  u32 key length, u32 value length
//  16  key, filled up with zeros to a word, then the value, filled up likewise
#pragma once

#include <string>

#include "heap.h"

namespace statepool::store {

constexpr size_t kMaxKey = 64 << 10, kMaxValue = 16 << 20;
constexpr size_t kItemGuess = 192;  // bytes a front-end asks for before it knows an item's size

struct Item {
  uint64_t lsn;
  uint32_t key_size, value_size;
  size_t key_at() const { return 16; }
  size_t value_at() const { return 16 + round_up(key_size, 8); }
  size_t size() const { return value_at() + round_up(value_size, 8); }
};

struct Entry {
  std::string key, value;
  uint64_t lsn = 0;
};

template <class Mem>
Item item_at(const Mem& mem, Addr a) {
  const uint64_t sizes = mem.load(a + 8);
  const Item item{mem.load(a), static_cast<uint32_t>(sizes), static_cast<uint32_t>(sizes >> 32)};
  if (item.key_size > kMaxKey || item.value_size > kMaxValue) throw Torn{};
  return item;
}

template <class Mem>
Addr make_item(Mem& mem, Bytes key, Bytes value) {
  const Item item{mem.lsn(), static_cast<uint32_t>(key.size()), static_cast<uint32_t>(value.size())};
  const Addr a = mem.allocate(item.size());
  mem.fill(a, &item, sizeof(item));
  mem.fill(a + item.key_at(), key.data(), key.size());
  mem.fill(a + item.value_at(), value.data(), value.size());
  return a;
}

// Writes a new value where the old one was, if both fill the same number of words.
template <class Mem>
bool rewrite_item(Mem& mem, Addr a, Bytes value) {
  Item item = item_at(mem, a);
  if (round_up(item.value_size, 8) != round_up(value.size(), 8) || value.size() > kSector) return false;
  item.lsn = mem.lsn();
  item.value_size = static_cast<uint32_t>(value.size());
  mem.write(a, &item, sizeof(item));
  mem.write(a + item.value_at(), value.data(), value.size());
  return true;
}

template <class Mem>
void release_item(Mem& mem, Addr a) {
  mem.release(a, item_at(mem, a).size());
}

// Sign of the item's key against `key`.
template <class Mem>
int compare_key(const Mem& mem, Addr a, Bytes key) {
  return mem.compare(a + 16, item_at(mem, a).key_size, key);
}

template <class Mem>
std::string key_of(const Mem& mem, Addr a) {
  const Item item = item_at(mem, a);
  std::string key(item.key_size, '\0');
  mem.read(a + item.key_at(), key.data(), key.size());
  return key;
}

template <class Mem>
void read_value(const Mem& mem, Addr a, std::string& value, uint64_t& lsn) {
  const Item item = item_at(mem, a);
  value.resize(item.value_size);
  mem.read(a + item.value_at(), value.data(), value.size());
  lsn = item.lsn;
}

template <class Mem>
Entry entry_at(const Mem& mem, Addr a) {
  Entry entry{key_of(mem, a), {}, 0};
  read_value(mem, a, entry.value, entry.lsn);
  return entry;
}

// The words that every structure's root object starts with; the structure's own follow.
struct Root {
  static constexpr Addr sequence = 0;      // odd while it is being changed
  static constexpr Addr size = 8;          // entries
  static constexpr Addr last_lsn = 16;     // of the last operation that changed it
  static constexpr Addr removal_lsn = 24;  // of the last one that took something away
  static constexpr Addr own = 32;
};

template <class Mem>
void note_change(Mem& mem, Addr root, int64_t grown, bool removed) {
  mem.store(root + Root::last_lsn, mem.lsn());
  if (removed) mem.store(root + Root::removal_lsn, mem.lsn());
  if (grown != 0) mem.store(root + Root::size, mem.load(root + Root::size) + static_cast<uint64_t>(grown));
}

}  // namespace statepool::store
