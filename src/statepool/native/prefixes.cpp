// Which node holds which block: a hash table from block keys to sets of nodes, and the prefix match of all nodes at once.
//
// A key that one node holds stores that node; a key of several stores the row of a bitset. Open addressing with linear
// probing: 12 bytes an entry, at most three quarters full.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "arrays.h"

namespace nb = nanobind;

namespace statepool {

class PrefixTable {
 public:
  PrefixTable(int64_t nodes, int64_t expected) : nodes_(nodes), words_((nodes + 63) / 64) {
    require(nodes > 0 && nodes < (1 << 24), "nodes: must be from 1 to 16777215");
    require(expected >= 0 && expected < (int64_t{1} << 36), "expected: must be from 0 to 2**36");
    size_t slots = 64;
    while (slots * 3 / 4 < static_cast<size_t>(expected)) slots *= 2;
    keys_.assign(slots, 0);
    values_.assign(slots, kEmpty);
  }

  int64_t size() const { return live_; }

  void add(int64_t node, const uint64_t* keys, int64_t count) {
    check(node);
    for (int64_t i = 0; i < count; ++i) {
      if ((used_ + 1) * 4 > static_cast<int64_t>(keys_.size()) * 3) grow();
      insert(static_cast<uint32_t>(node), keys[i]);
    }
  }

  void drop(int64_t node, const uint64_t* keys, int64_t count) {
    check(node);
    for (int64_t i = 0; i < count; ++i) {
      const size_t slot = find(keys[i]);
      if (slot == kNowhere) continue;
      uint32_t& value = values_[slot];
      if (!(value & kRow)) {
        if (value == node) erase(slot);
        continue;
      }
      uint64_t* row = row_of(value);
      row[node / 64] &= ~(uint64_t{1} << (node % 64));
      int64_t left = 0;
      uint32_t last = 0;
      for (int64_t word = 0; word < words_; ++word)
        if (row[word]) {
          left += __builtin_popcountll(row[word]);
          last = static_cast<uint32_t>(word * 64 + __builtin_ctzll(row[word]));
        }
      if (left <= 1) {
        free_rows_.push_back(value & ~kRow);
        value = last;
        if (left == 0) erase(slot);
      }
    }
  }

  // held[node] = how many leading keys the node holds.
  void match(const uint64_t* keys, int64_t count, int64_t* held) const {
    std::fill_n(held, nodes_, int64_t{0});
    std::vector<uint64_t> alive(words_, ~uint64_t{0});
    if (nodes_ % 64) alive[words_ - 1] = (uint64_t{1} << (nodes_ % 64)) - 1;
    for (int64_t depth = 0; depth < count; ++depth) {
      if (depth + kAhead < count) {
        const size_t near = home(keys[depth + kAhead]);
        __builtin_prefetch(&keys_[near]);
        __builtin_prefetch(&values_[near]);
      }
      const size_t slot = find(keys[depth]);
      const uint32_t value = slot == kNowhere ? kEmpty : values_[slot];
      const uint64_t* row = value < kTombstone && (value & kRow) ? row_of(value) : nullptr;
      bool any = false;
      for (int64_t word = 0; word < words_; ++word) {
        if (!alive[word]) continue;
        uint64_t holds = row ? row[word] : 0;
        if (!row && value < kRow && value / 64 == static_cast<uint64_t>(word)) holds = uint64_t{1} << (value % 64);
        for (uint64_t lost = alive[word] & ~holds; lost; lost &= lost - 1) held[word * 64 + __builtin_ctzll(lost)] = depth;
        alive[word] &= holds;
        any |= alive[word] != 0;
      }
      if (!any) return;
    }
    for (int64_t word = 0; word < words_; ++word)
      for (uint64_t left = alive[word]; left; left &= left - 1) held[word * 64 + __builtin_ctzll(left)] = count;
  }

  int64_t nodes() const { return nodes_; }

 private:
  static constexpr uint32_t kEmpty = 0xffffffff, kTombstone = 0xfffffffe, kRow = 0x80000000;
  static constexpr size_t kNowhere = ~size_t{0};
  static constexpr int64_t kAhead = 8;

  void check(int64_t node) const { require(node >= 0 && node < nodes_, "node: must be from 0 to below nodes"); }

  size_t home(uint64_t key) const {
    key ^= key >> 33;
    key *= 0xff51afd7ed558ccdULL;
    key ^= key >> 33;
    return key & (keys_.size() - 1);
  }

  size_t find(uint64_t key) const {
    for (size_t slot = home(key); values_[slot] != kEmpty; slot = (slot + 1) & (keys_.size() - 1))
      if (keys_[slot] == key && values_[slot] != kTombstone) return slot;
    return kNowhere;
  }

  void insert(uint32_t node, uint64_t key) {
    const size_t found = find(key);
    if (found == kNowhere) {
      size_t slot = home(key);
      while (values_[slot] < kTombstone) slot = (slot + 1) & (keys_.size() - 1);
      used_ += values_[slot] == kEmpty;
      ++live_;
      keys_[slot] = key;
      values_[slot] = node;
      return;
    }
    uint32_t& value = values_[found];
    if (value == node) return;
    if (!(value & kRow)) {
      const uint32_t row = new_row();
      set(row_of(row), value);
      value = row;
    }
    set(row_of(value), node);
  }

  void erase(size_t slot) {
    values_[slot] = kTombstone;
    --live_;
  }

  static void set(uint64_t* row, uint32_t node) { row[node / 64] |= uint64_t{1} << (node % 64); }

  uint64_t* row_of(uint32_t value) { return &rows_[static_cast<size_t>(value & ~kRow) * words_]; }
  const uint64_t* row_of(uint32_t value) const { return &rows_[static_cast<size_t>(value & ~kRow) * words_]; }

  uint32_t new_row() {
    if (free_rows_.empty()) {
      const size_t row = rows_.size() / words_;
      require(row < kTombstone - kRow, "too many keys are held by several nodes");
      rows_.resize(rows_.size() + words_, 0);
      return static_cast<uint32_t>(row) | kRow;
    }
    const uint32_t row = free_rows_.back();
    free_rows_.pop_back();
    std::fill_n(&rows_[static_cast<size_t>(row) * words_], words_, uint64_t{0});
    return row | kRow;
  }

  void grow() {
    // Twice the room unless most of it is tombstones.
    const size_t slots = keys_.size() * (live_ * 2 > used_ ? 2 : 1);
    std::vector<uint64_t> keys(slots, 0);
    std::vector<uint32_t> values(slots, kEmpty);
    keys.swap(keys_);
    values.swap(values_);
    for (size_t old = 0; old < keys.size(); ++old) {
      if (values[old] >= kTombstone) continue;
      size_t slot = home(keys[old]);
      while (values_[slot] != kEmpty) slot = (slot + 1) & (slots - 1);
      keys_[slot] = keys[old];
      values_[slot] = values[old];
    }
    used_ = live_;
  }

  int64_t nodes_, words_, used_ = 0, live_ = 0;
  std::vector<uint64_t> keys_, rows_;
  std::vector<uint32_t> values_, free_rows_;
};

}  // namespace statepool

using Keys = statepool::Array<const uint64_t, 1>;

void bind_prefixes(nb::module_& m) {
  using statepool::PrefixTable;
  nb::class_<PrefixTable>(m, "PrefixTable", "Block keys to sets of nodes. Not to be used by two threads at once.")
      .def(nb::init<int64_t, int64_t>(), nb::arg("nodes"), nb::arg("expected") = 0)
      .def("__len__", &PrefixTable::size)
      .def(
          "add", [](PrefixTable& self, int64_t node, Keys keys) { self.add(node, keys.data(), statepool::extent(keys, 0)); },
          nb::arg("node"), nb::arg("keys"), nb::call_guard<nb::gil_scoped_release>(), "The node holds these keys: uint64 [n].")
      .def(
          "drop", [](PrefixTable& self, int64_t node, Keys keys) { self.drop(node, keys.data(), statepool::extent(keys, 0)); },
          nb::arg("node"), nb::arg("keys"), nb::call_guard<nb::gil_scoped_release>(), "The node no longer holds these keys.")
      .def(
          "match",
          [](const PrefixTable& self, Keys keys) {
            auto* held = new int64_t[static_cast<size_t>(self.nodes())];
            nb::capsule owner(held, [](void* data) noexcept { delete[] static_cast<int64_t*>(data); });
            self.match(keys.data(), statepool::extent(keys, 0), held);
            return nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>(held, {static_cast<size_t>(self.nodes())}, owner);
          },
          nb::arg("keys"), "How many leading keys each node holds: int64 [nodes].");
}
