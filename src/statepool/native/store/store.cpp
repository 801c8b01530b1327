#include "store.h"

#include "structures/any.h"

namespace statepool::store {
namespace {

void check_sizes(const Operation& o) {
  const bool keyed = o.verb == Verb::put || o.verb == Verb::erase || o.verb == Verb::create;
  if (keyed && o.a.size() > kMaxKey)
    throw StoreError(Fault::invalid, "key: " + std::to_string(o.a.size()) + " bytes, the limit is 65,536");
  if (o.verb == Verb::enqueue && o.b.size() > kMaxKey)
    throw StoreError(Fault::invalid, "dedup: an id of " + std::to_string(o.b.size()) + " bytes, the limit is 65,536");
  const size_t value = keyed ? o.b.size() : o.a.size();
  if (value > kMaxValue)
    throw StoreError(Fault::invalid, "value: " + std::to_string(value) + " bytes, the limit is 16 MiB; split it");
}

}  // namespace

// ---- writing -----------------------------------------------------------------------------------------------------

uint64_t Store::commit(const Operation* operations, size_t count, Outcome* outcomes, Level level, OperationId id,
                       const std::vector<Seen>& seen) {
  if (level == Level::inherit) level = options_.level;
  for (size_t i = 0; i < count; ++i) check_sizes(operations[i]);
  uint64_t lsn = 0;
  {
    const std::lock_guard<std::mutex> lock(writer_);
    check_writable();
    if (!known(id, outcomes, count, lsn)) {
      check(seen);
      lsn = run(operations, count, outcomes, id);
      checkpoint_if_due();
    }
  }
  if (level != Level::process) committer_->wait(lsn);
  else if (committer_->idle() && !ring_->empty()) committer_->nudge();
  return lsn;
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
      heap_->set_lsn(lsn + 1);
      outcomes[i] = apply(operations[i]);
      if (logged(i)) ++lsn;
    }
    uint64_t staged = before;
    for (size_t i = 0; i < count; ++i) {
      if (!logged(i)) continue;
      const uint16_t first = staged == before ? kTransactionBegin : 0, last = ++staged == lsn ? kTransactionEnd : 0;
      stage(operations[i], id, first | last);
    }
    if (lsn == before) {
      roll_back();
      return before;
    }
    heap_->set_lsn(lsn);
    if (id.client != 0) remember(id, lsn, outcomes[count - 1]);
    heap_->seal();
  } catch (const Torn&) {  // nobody changes what the writer reads
    roll_back();
    throw StoreError(Fault::corrupt, "heap: a structure points outside the heap");
  } catch (...) {
    roll_back();
    throw;
  }
  ring_->publish();
  __atomic_store_n(&heap_->control().logged_lsn, lsn, __ATOMIC_RELEASE);
  heap_->commit();
  for (size_t i = 0; i < count; ++i) adopt(operations[i], outcomes[i]);
  return lsn;
}

void Store::stage(const Operation& o, OperationId id, uint16_t flags) {
  RecordHeader header{};
  header.type = static_cast<uint16_t>(o.verb);
  header.flags = flags;
  header.structure = o.structure;
  header.client = id.client;
  header.client_seq = id.sequence;
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

// What is kept of a client's last operation, before the value.
struct Remembered {
  uint64_t sequence, lsn, changed, number, token, attempts;
};

Bytes client_key(const uint32_t& client) { return {reinterpret_cast<const char*>(&client), sizeof(client)}; }

}  // namespace

void Store::remember(OperationId id, uint64_t lsn, const Outcome& o) {
  const Remembered fixed{id.sequence, lsn, o.changed ? 1u : 0u, o.number, o.token, o.attempts};
  std::string value(reinterpret_cast<const char*>(&fixed), sizeof(fixed));
  value += o.value;
  const Addr clients = heap_->header().clients;
  heap_->change(clients);
  HashTable<Heap>(*heap_, clients).put(client_key(id.client), value);
}

uint64_t Store::last_of(uint32_t client, Outcome& o) const {
  const Addr clients = heap_->header().clients;
  const HashTable<Heap> table(*heap_, clients);
  std::string value;
  uint64_t lsn = 0;
  uint64_t retries = 0;
  if (!read_stable(*heap_, clients, retries, [&] { return table.get(client_key(client), value, lsn); })) return 0;
  if (value.size() < sizeof(Remembered)) throw StoreError(Fault::corrupt, "clients: an entry is too short");
  const auto fixed = load_as<Remembered>(value.data());
  o = Outcome{fixed.changed != 0, fixed.number, fixed.token, fixed.attempts, value.substr(sizeof(fixed))};
  return fixed.sequence;
}

bool Store::known(OperationId id, Outcome* outcomes, size_t count, uint64_t& lsn) const {
  if (id.client == 0) return false;
  const uint64_t last = last_of(id.client, outcomes[count - 1]);
  if (last < id.sequence) return false;
  if (last > id.sequence)
    throw StoreError(Fault::invalid, "op_id: sequence " + std::to_string(id.sequence) + " of client " +
                                         std::to_string(id.client) + " is older than its last, " + std::to_string(last));
  lsn = heap_->control().logged_lsn;
  return true;
}

}  // namespace statepool::store
