// The table of open structures: readers index it while the writer adds to it, so entries never move.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "heap.h"
#include "operation.h"

namespace statepool::store {

struct Structure {
  std::string name;
  Kind kind{};
  std::atomic<Addr> root{0};  // 0: dropped
};

class Table {
 public:
  uint32_t size() const { return size_.load(std::memory_order_acquire); }

  // StoreError: missing.
  const Structure& at(uint32_t id) const {
    if (id < size()) {
      const Structure& s = slot(id);
      if (s.root.load(std::memory_order_acquire) != 0) return s;
    }
    throw StoreError(Fault::missing, "structure " + std::to_string(id) + " does not exist; it may have been dropped");
  }
  bool live(uint32_t id) const { return id < size() && slot(id).root.load(std::memory_order_acquire) != 0; }
  const std::string& name(uint32_t id) const { return slot(id).name; }
  void set_root(uint32_t id, Addr root) { slot(id).root.store(root, std::memory_order_release); }

  // Ids between the present end and `id` become dropped ones.
  void put(uint32_t id, std::string name, Kind kind, Addr root) {
    for (uint32_t i = size(); i <= id; ++i) {
      const int c = chunk(i);
      if (chunks_[c] == nullptr) chunks_[c] = std::make_unique<Structure[]>(kFirst << c);
      size_.store(i + 1, std::memory_order_release);
    }
    Structure& s = slot(id);
    s.name = std::move(name);
    s.kind = kind;
    s.root.store(root, std::memory_order_release);
  }

 private:
  static constexpr uint32_t kFirst = 64;
  static int chunk(uint32_t id) { return 31 - __builtin_clz(id / kFirst + 1); }
  Structure& slot(uint32_t id) const {
    const int c = chunk(id);
    return chunks_[c][id - kFirst * ((1u << c) - 1)];
  }

  std::array<std::unique_ptr<Structure[]>, 26> chunks_;
  std::atomic<uint32_t> size_{0};
};

}  // namespace statepool::store
