// What can be read of a store, by its owner and by other processes alike.
#pragma once

#include <atomic>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "item.h"
#include "structures/any.h"
#include "table.h"

namespace statepool::store {

class View {
 public:
  virtual ~View() = default;
  const Table& structures() const { return table_; }

  // lsn: of the entry or, if there is none, of the last removal.
  bool get(uint32_t id, Bytes key, std::string& value, uint64_t& lsn);
  uint64_t size(uint32_t id);
  uint64_t last_change(uint32_t id);                                     // lsn
  uint64_t scan(uint32_t id, uint64_t cursor, std::vector<Entry>& out);  // dict: next cursor, 0 at the end
  void scan(uint32_t id, const Range& range, size_t limit, std::vector<Entry>& out);
  // Stacks: places below the top and their values. Queues: numbers and values of items not acknowledged.
  void peek(uint32_t id, uint64_t start, size_t limit, std::vector<std::pair<uint64_t, std::string>>& out);

  // Of a queue, those that were taken too often; the one that died first comes first.
  void dead(uint32_t id, size_t limit, std::vector<Taken>& out);

  uint64_t applied_lsn() const { return heap_->applied_lsn(); }
  uint64_t durable_lsn() const { return __atomic_load_n(&heap_->control().durable_lsn, __ATOMIC_ACQUIRE); }
  // Reads that met a change and waited or began again.
  uint64_t retries() const { return retries_.load(std::memory_order_relaxed); }

 protected:
  // Brings the table to the catalog's present version, which it returns; odd: the next one is being made.
  virtual uint64_t follow() { return Heap::sequence(heap_->watch(heap_->header().catalog)); }
  void load_catalog();  // into the table: new structures and new roots; those that are gone become dropped

  std::unique_ptr<Heap> heap_;
  Table table_;
  std::unordered_map<std::string, uint32_t> names_;
  std::atomic<uint64_t> retries_{0};

 private:
  template <class Body>
  auto read(uint32_t id, const Bytes* key, Body&& body);
};

}  // namespace statepool::store
