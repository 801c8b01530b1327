// Snapshots: versions of multi-version structures that are kept while a reader holds them, for a bounded time.
#include <chrono>

#include "store.h"
#include "structures/any.h"

namespace statepool::store {
namespace {

uint64_t now_ms() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

}  // namespace

Snapshot Store::pin(uint32_t id, uint64_t lease) {
  const std::lock_guard<std::mutex> lock(writer_);
  const Structure& s = table_.at(id);
  Snapshot snapshot;
  snapshot.structure = id;
  with_structure(*heap_, s.kind, s.root, [&](auto& structure) {
    STATEPOOL_ONLY(has_versions<std::decay_t<decltype(structure)>>) {
      snapshot.record = structure.current();
      snapshot.version = structure.version();
      snapshot.size = structure.size_at(snapshot.record);
    }
  });
  const std::lock_guard<std::mutex> pins(pins_lock_);
  snapshot.number = next_pin_++;
  pins_[snapshot.number] = {id, snapshot.version, now_ms() + lease};
  return snapshot;
}

void Store::unpin(const Snapshot& snapshot) {
  const std::lock_guard<std::mutex> lock(pins_lock_);
  pins_.erase(snapshot.number);
}

bool Store::pinned(const Snapshot& snapshot) const {
  const std::lock_guard<std::mutex> lock(pins_lock_);
  const auto found = pins_.find(snapshot.number);
  return found != pins_.end() && found->second.until > now_ms();
}

// What a version up to the result has replaced can be freed. Pins whose lease has ended do not count.
uint64_t Store::oldest_pinned(uint32_t id, uint64_t version) {
  const std::lock_guard<std::mutex> lock(pins_lock_);
  if (pins_.empty()) return version;
  const uint64_t now = now_ms();
  for (auto pin = pins_.begin(); pin != pins_.end();) {
    if (pin->second.until <= now) {
      pin = pins_.erase(pin);
      continue;
    }
    if (pin->second.structure == id) version = std::min(version, pin->second.version);
    ++pin;
  }
  return version;
}

// The pin is looked at after reading: while it stood, what was read was not freed.
template <class Body>
auto Store::read_pinned(const Snapshot& snapshot, Body&& body) const {
  const Structure& s = table_.at(snapshot.structure);
  try {
    auto result = with_structure(*heap_, s.kind, s.root, [&](auto& structure) -> bool {
      STATEPOOL_ONLY(has_versions<std::decay_t<decltype(structure)>>) return body(structure);
    });
    if (pinned(snapshot)) return result;
  } catch (const Torn&) {
    if (pinned(snapshot)) throw StoreError(Fault::corrupt, "heap: a snapshot points outside the heap");
  }
  throw StoreError(Fault::expired, "snapshot: its lease has ended or it was closed; take a new one");
}

bool Store::get_at(const Snapshot& snapshot, Bytes key, std::string& value) const {
  return read_pinned(snapshot, [&](auto& structure) {
    uint64_t lsn = 0;
    return structure.get_at(snapshot.record, key, value, lsn);
  });
}

void Store::scan_at(const Snapshot& snapshot, const Range& range, size_t limit, std::vector<Entry>& out) const {
  read_pinned(snapshot, [&](auto& structure) {
    out.clear();
    structure.scan_at(snapshot.record, range, limit, out);
    return true;
  });
}

}  // namespace statepool::store
