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

// Runs `body` until it saw the structure unchanged from start to end: all of it, or the part that `key` lies in. An
// unchanged catalog says that the structure was not dropped meanwhile, for then its memory may hold anything.
template <class Body>
auto View::read(uint32_t id, const Bytes* key, Body&& body) {
  for (uint64_t tries = 0;; ++tries) {
    const uint64_t version = follow();
    const Structure& s = table_.at(id);
    const Addr root = s.root;
    const bool part = key != nullptr && s.kind == Kind::dict;
    const auto catalog = heap_->watch(heap_->header().catalog);
    const auto watch = part ? heap_->watch(root, HashTable<Heap>::part_of(*key)) : heap_->watch(root);
    const uint64_t before = Heap::sequence(watch);
    const auto still = [&] { return Heap::still(watch, before) && Heap::still(catalog, version); };
    if ((before & 1) == 0) {
      try {
        auto result = with_structure(*heap_, s.kind, root, [&](auto& structure) { return body(structure, root); });
        if (still()) {
          if (tries > 0) retries_.fetch_add(1, std::memory_order_relaxed);
          return result;
        }
      } catch (const Torn&) {
        if (still()) throw StoreError(Fault::corrupt, "heap: structure '" + s.name + "' points outside the heap");
      }
    }
    heap_->pause(tries);
  }
}

bool View::get(uint32_t id, Bytes key, std::string& value, uint64_t& lsn) {
  for (uint64_t tries = 0;; ++tries) {
    const bool found = read(id, &key, [&](auto& s, Addr root) -> bool {
      STATEPOOL_ONLY(is_map<std::decay_t<decltype(s)>>) {
        if (s.get(key, value, lsn)) return true;
        lsn = heap_->load(root + Root::removal_lsn);
        return false;
      }
    });
    // The last removal may be one of another key that is going on and may yet be taken back.
    if (found || lsn <= __atomic_load_n(&heap_->control().logged_lsn, __ATOMIC_ACQUIRE)) return found;
    heap_->pause(tries);
  }
}

uint64_t View::size(uint32_t id) {
  return read(id, nullptr, [&](auto&, Addr root) { return heap_->load(root + Root::size); });
}

uint64_t View::last_change(uint32_t id) {
  return read(id, nullptr, [&](auto&, Addr root) { return heap_->load(root + Root::last_lsn); });
}

uint64_t View::scan(uint32_t id, uint64_t cursor, std::vector<Entry>& out) {
  return read(id, nullptr, [&](auto& s, Addr) -> uint64_t {
    out.clear();
    STATEPOOL_ONLY(is_hash<std::decay_t<decltype(s)>>) { return s.scan(cursor, out); }
  });
}

void View::scan(uint32_t id, const Range& range, size_t limit, std::vector<Entry>& out) {
  read(id, nullptr, [&](auto& s, Addr) -> int {
    out.clear();
    STATEPOOL_ONLY(is_sorted<std::decay_t<decltype(s)>>) {
      s.scan(range, limit, out);
      return 0;
    }
  });
}

void View::peek(uint32_t id, uint64_t start, size_t limit, std::vector<std::pair<uint64_t, std::string>>& out) {
  read(id, nullptr, [&](auto& s, Addr) -> int {
    using S = std::decay_t<decltype(s)>;
    out.clear();
    STATEPOOL_ONLY(is_stack<S> || is_queue<S>) {
      if constexpr (is_queue<S>) s.peek(start, limit, out);
      else s.scan(start, limit, out);
      return 0;
    }
  });
}

void View::dead(uint32_t id, size_t limit, std::vector<Taken>& out) {
  read(id, nullptr, [&](auto& s, Addr) -> int {
    out.clear();
    STATEPOOL_ONLY(is_queue<std::decay_t<decltype(s)>>) {
      s.scan_dead(limit, out);
      return 0;
    }
  });
}

}  // namespace statepool::store
