#include "view.h"

namespace statepool::store {

void View::load_catalog() {
  const Addr root = heap_->header().catalog;
  const HashTable<Heap> catalog(*heap_, root);
  std::vector<Entry> entries;
  uint64_t retries = 0;
  read_stable(*heap_, root, retries, [&] {
    entries.clear();
    std::vector<Entry> page;
    uint64_t cursor = 0;
    do {
      page.clear();
      cursor = catalog.scan(cursor, page);
      entries.insert(entries.end(), page.begin(), page.end());
    } while (cursor != 0);
    return true;
  });
  std::unordered_map<std::string, uint32_t> names;
  for (const Entry& entry : entries) {
    if (entry.value.size() != 24) throw StoreError(Fault::corrupt, "catalog: an entry has the wrong size");
    const auto id = static_cast<uint32_t>(load_as<uint64_t>(entry.value.data()));
    table_.put(id, entry.key, static_cast<Kind>(entry.value[8]), load_as<uint64_t>(entry.value.data() + 16));
    names[entry.key] = id;
  }
  for (const auto& [name, id] : names_)
    if (names.count(name) == 0 || names[name] != id) table_.set_root(id, 0);
  names_ = std::move(names);
}

template <class Body>
auto View::read(uint32_t id, Body&& body) const {
  const Structure& s = table_.at(id);
  const Addr root = s.root;
  const auto dropped = [&] { return s.root.load(std::memory_order_acquire) != root; };
  try {
    uint64_t retries = 0;
    auto result = read_stable(*heap_, root, retries, [&] {
      return with_structure(*heap_, s.kind, root, [&](auto& structure) { return body(structure, root); });
    });
    if (retries > 0) retries_.fetch_add(1, std::memory_order_relaxed);
    if (!dropped()) return result;
  } catch (const StoreError& error) {  // memory of a dropped structure may hold anything
    if (error.fault != Fault::corrupt || !dropped()) throw;
  }
  throw StoreError(Fault::missing, "structure '" + s.name + "' was dropped meanwhile");
}

bool View::get(uint32_t id, Bytes key, std::string& value, uint64_t& lsn) const {
  return read(id, [&](auto& s, Addr root) -> bool {
    STATEPOOL_ONLY(is_map<std::decay_t<decltype(s)>>) {
      if (s.get(key, value, lsn)) return true;
      lsn = heap_->load(root + Root::removal_lsn);
      return false;
    }
  });
}

uint64_t View::size(uint32_t id) const {
  return read(id, [&](auto&, Addr root) { return heap_->load(root + Root::size); });
}

uint64_t View::last_change(uint32_t id) const {
  return read(id, [&](auto&, Addr root) { return heap_->load(root + Root::last_lsn); });
}

uint64_t View::scan(uint32_t id, uint64_t cursor, std::vector<Entry>& out) const {
  return read(id, [&](auto& s, Addr) -> uint64_t {
    out.clear();
    STATEPOOL_ONLY(is_hash<std::decay_t<decltype(s)>>) { return s.scan(cursor, out); }
  });
}

void View::scan(uint32_t id, const Range& range, size_t limit, std::vector<Entry>& out) const {
  read(id, [&](auto& s, Addr) -> int {
    out.clear();
    STATEPOOL_ONLY(is_sorted<std::decay_t<decltype(s)>>) {
      s.scan(range, limit, out);
      return 0;
    }
  });
}

void View::peek(uint32_t id, uint64_t start, size_t limit, std::vector<std::pair<uint64_t, std::string>>& out) const {
  read(id, [&](auto& s, Addr) -> int {
    using S = std::decay_t<decltype(s)>;
    out.clear();
    STATEPOOL_ONLY(is_stack<S> || is_queue<S>) {
      if constexpr (is_queue<S>) s.peek(start, limit, out);
      else s.scan(start, limit, out);
      return 0;
    }
  });
}

void View::dead(uint32_t id, size_t limit, std::vector<Taken>& out) const {
  read(id, [&](auto& s, Addr) -> int {
    out.clear();
    STATEPOOL_ONLY(is_queue<std::decay_t<decltype(s)>>) {
      s.scan_dead(limit, out);
      return 0;
    }
  });
}

}  // namespace statepool::store
