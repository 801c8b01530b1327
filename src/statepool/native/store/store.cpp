#include "store.h"

#include <algorithm>

#include "persist_point.h"
#include "structures/any.h"

namespace statepool::store {
namespace {

constexpr size_t kGathered = 16;  // operations whose memory is asked for together: about what a core can wait for

// What passes here can be read back from the log: its records have a limit of their own.
void check_sizes(const Operation& o) {
  const bool keyed = o.verb == Verb::put || o.verb == Verb::erase || o.verb == Verb::create;
  const Bytes key = keyed ? o.a : o.b, value = keyed ? o.b : o.a;
  if (key.size() > kMaxKey)
    throw StoreError(Fault::invalid, "key: " + std::to_string(key.size()) + " bytes, the limit is 65,536");
  if (value.size() > kMaxValue)
    throw StoreError(Fault::invalid, "value: " + std::to_string(value.size()) + " bytes, the limit is 16 MiB; split it");
}

}  // namespace

// ---- writing -----------------------------------------------------------------------------------------------------

uint64_t Store::commit(const Operation* operations, size_t count, Outcome* outcomes, Level level, OperationId id,
                       const std::vector<Seen>& seen) {
  const uint64_t lsn = submit(operations, count, outcomes, id, seen);
  settle(lsn, level);
  return lsn;
}

uint64_t Store::submit(const Operation* operations, size_t count, Outcome* outcomes, OperationId id,
                       const std::vector<Seen>& seen) {
  for (size_t i = 0; i < count; ++i) check_sizes(operations[i]);
  uint64_t lsn = 0;
  const std::lock_guard<std::mutex> lock(writer_);
  check_writable();
  if (!known(id, outcomes, count, lsn)) {
    check(seen);
    lsn = run(operations, count, outcomes, id);
    checkpoint_if_due();
  }
  return lsn;
}

bool Store::settle(uint64_t lsn, Level level) {
  if (this->level(level) != Level::process) return committer_->wait(lsn);
  if (!disk_->alone() && committer_->idle() && !ring_->empty()) committer_->nudge();
  return false;
}

// Applies, then publishes, then ends the heap's transaction: whichever instruction is the last one, either the records
// are in the ring and will be applied again, or they are not and the heap is rolled back.
uint64_t Store::run(const Operation* operations, size_t count, Outcome* outcomes, OperationId id) {
  const uint64_t before = heap_->control().logged_lsn;
  uint64_t lsn = before;
  const auto logged = [&](size_t i) { return outcomes[i].changed || id.client != 0; };
  ring_->start();
  try {
    for (size_t i = 0; i < count; ++i) {
      if (count > 1 && i % kGathered == 0) gather(operations + i, std::min(kGathered, count - i));
      heap_->set_lsn(lsn + 1);
      outcomes[i] = apply(operations[i]);
      persist_point("run applied");
      if (logged(i)) ++lsn;
    }
    const bool slot = id.client >= kFirstSlot;
    if (slot && std::none_of(outcomes, outcomes + count, [](auto& o) { return o.changed; })) lsn = before;
    uint64_t staged = before;
    if (lsn == before) {
      roll_back();
      return before;
    }
    for (size_t i = 0; i < count; ++i) {
      if (!logged(i)) continue;
      const uint16_t first = staged == before ? kTransactionBegin : 0, last = ++staged == lsn ? kTransactionEnd : 0;
      stage(operations[i], id, staged, first | last);
    }
    heap_->set_lsn(lsn);
    if (id.client != 0) {
      const bool all = std::any_of(operations, operations + count, [](auto& o) { return o.verb != Verb::put; });
      remember(id, lsn, all ? outcomes : outcomes + count - 1, all ? count : 1);
    }
    heap_->prepare();
  } catch (const Torn&) {  // nobody else changes what the writer reads
    roll_back();
    throw StoreError(Fault::corrupt, "heap: a structure points outside the heap");
  } catch (...) {
    roll_back();
    throw;
  }
  persist_point("run staged");
  ring_->publish();
  persist_point("run published");
  __atomic_store_n(&heap_->control().logged_lsn, lsn, __ATOMIC_RELEASE);
  persist_point("run logged");
  heap_->commit();
  persist_point("run committed");
  for (size_t i = 0; i < count; ++i) adopt(operations[i], outcomes[i]);
  return lsn;
}

void Store::stage(const Operation& o, OperationId id, uint64_t lsn, uint16_t flags) {
  RecordHeader header{};
  header.type = static_cast<uint16_t>(o.verb);
  header.flags = flags;
  header.structure = o.structure;
  header.client = id.client;
  header.client_seq = id.sequence;
  header.lsn_low = static_cast<uint32_t>(lsn);
  const BodyHeader body{static_cast<uint32_t>(o.a.size()), static_cast<uint32_t>(o.b.size()), o.x, o.y};
  const Bytes head(reinterpret_cast<const char*>(&body), sizeof(body));
  while (!ring_->stage(header, {head, o.a, o.b})) {
    if (ring_->empty())
      throw StoreError(Fault::invalid, "transaction: larger than the staging ring of " +
                                           std::to_string(ring_->capacity()) + " bytes; make it smaller");
    committer_->flush();
  }
}

void Store::check_writable() const {
  if (closed_) throw StoreError(Fault::read_only, "store: it is closed");
  if (committer_->failed())
    throw StoreError(Fault::read_only, "store: a write to the log failed earlier; reopen it to go on from what is durable");
}

void Store::validate(const std::vector<Seen>& seen) const {
  const std::lock_guard<std::mutex> lock(writer_);
  check(seen);
}

void Store::check(const std::vector<Seen>& seen) const {
  for (const Seen& s : seen) {
    const Structure& structure = table_.at(s.structure);
    const Addr root = structure.root;
    const uint64_t now = s.whole ? heap_->load(root + Root::last_lsn) : lsn_of(*heap_, structure.kind, root, s.key);
    if (now != s.lsn)
      throw StoreError(Fault::conflict, "transaction: '" + structure.name + "' was changed by another meanwhile; run it again");
  }
}

// ---- clients: exactly once -----------------------------------------------------------------------------------------

namespace {

// What is kept of a client's last transaction: this, then its outcomes, each before its value.
struct Remembered {
  uint64_t sequence, lsn, outcomes;
};
struct Kept {
  uint64_t changed, number, token, attempts, size;
};

Bytes client_key(const uint32_t& client) { return {reinterpret_cast<const char*>(&client), sizeof(client)}; }

template <class T>
void append_as(std::string& to, const T& fixed) {
  to.append(reinterpret_cast<const char*>(&fixed), sizeof(fixed));
}

}  // namespace

// `outcomes`: of the whole transaction, unless only the last one can be of interest.
void Store::remember(OperationId id, uint64_t lsn, const Outcome* outcomes, size_t count) {
  std::string value;
  append_as(value, Remembered{id.sequence, lsn, count});
  for (size_t i = 0; i < count; ++i) {
    const Outcome& o = outcomes[i];
    append_as(value, Kept{o.changed ? 1u : 0u, o.number, o.token, o.attempts, o.value.size()});
    value += o.value;
  }
  const Addr clients = heap_->header().clients;
  heap_->change(clients);
  HashTable<Heap>(*heap_, clients).put(client_key(id.client), value);
}

uint64_t Store::last_of(uint32_t client, std::vector<Outcome>& outcomes) const {
  const Addr clients = heap_->header().clients;
  const HashTable<Heap> table(*heap_, clients);
  std::string value;
  uint64_t lsn = 0;
  uint64_t retries = 0;
  outcomes.clear();
  if (!read_stable(*heap_, clients, retries, [&] { return table.get(client_key(client), value, lsn); })) return 0;
  const auto corrupt = [] { return StoreError(Fault::corrupt, "clients: an entry is too short"); };
  if (value.size() < sizeof(Remembered)) throw corrupt();
  const auto fixed = load_as<Remembered>(value.data());
  size_t at = sizeof(fixed);
  for (uint64_t i = 0; i < fixed.outcomes; ++i) {
    if (value.size() - at < sizeof(Kept)) throw corrupt();
    const auto kept = load_as<Kept>(value.data() + at);
    at += sizeof(Kept);
    if (value.size() - at < kept.size) throw corrupt();
    outcomes.push_back({kept.changed != 0, kept.number, kept.token, kept.attempts, value.substr(at, kept.size)});
    at += kept.size;
  }
  return fixed.sequence;
}

bool Store::known(OperationId id, Outcome* outcomes, size_t count, uint64_t& lsn) const {
  if (id.client == 0) return false;
  std::vector<Outcome> first;
  const uint64_t last = last_of(id.client, first);
  if (last < id.sequence) return false;
  if (last > id.sequence)
    throw StoreError(Fault::invalid, "op_id: sequence " + std::to_string(id.sequence) + " of client " +
                                         std::to_string(id.client) + " is older than its last, " + std::to_string(last));
  for (size_t i = 1; i <= count; ++i)
    outcomes[count - i] = i <= first.size() ? first[first.size() - i] : Outcome{true, 0, 0, 0, {}};
  lsn = heap_->control().logged_lsn;
  return true;
}

}  // namespace statepool::store
