#include "crash_history.h"

#include <algorithm>

namespace statepool::store {
namespace {

constexpr uint32_t kClient = 7;

bool is_map_kind(Kind kind) { return kind != Kind::stack && kind != Kind::queue; }

void dump_map(Store& store, uint32_t id, const Structure& s, Model& found) {
  auto& map = found.maps[s.name];
  std::vector<Entry> entries;
  uint64_t cursor = 0;
  do {
    if (s.kind == Kind::dict) cursor = store.scan(id, cursor, entries);
    else store.scan(id, Range{}, ~size_t{0}, entries);
    for (Entry& e : entries) {
      std::string value;
      uint64_t lsn = 0;
      if (!store.get(id, e.key, value, lsn) || value != e.value || lsn != e.lsn)
        throw StoreError(Fault::corrupt, s.name + ": a key that a scan finds cannot be got");
      map[e.key] = e.value;
    }
  } while (cursor != 0);
  if (map.size() != store.size(id)) throw StoreError(Fault::corrupt, s.name + ": its size is wrong");
}

void dump_list(Store& store, uint32_t id, const Structure& s, Model& found) {
  std::vector<std::pair<uint64_t, std::string>> values;
  store.peek(id, 0, ~size_t{0}, values);
  auto& list = found.lists[s.name];
  for (auto& [number, value] : values) list.push_back(value);
  if (s.kind == Kind::stack) std::reverse(list.begin(), list.end());
  if (list.size() != store.size(id)) throw StoreError(Fault::corrupt, s.name + ": its size is wrong");
}

}  // namespace

StoreOptions small_options() {
  StoreOptions options;
  options.capacity = 4 << 20;
  options.segment_size = 64 << 10;
  options.ring = 256 << 10;
  options.journal = 256 << 10;
  options.checkpoint_bytes = 1ull << 40;  // only when the history asks for one
  options.shared = false;
  return options;
}

std::string Model::dump() const {
  std::string out = std::to_string(sequence);
  for (const auto& [name, map] : maps) {
    out += name + "{";
    for (const auto& [key, value] : map) out += key + "=" + value + ",";
    out += "}";
  }
  for (const auto& [name, list] : lists) {
    out += name + "[";
    for (const auto& value : list) out += value + ",";
    out += "]";
  }
  return out;
}

std::string dump(Store& store) {
  Model found;
  const Table& table = store.structures();
  for (uint32_t id = 0; id < table.size(); ++id) {
    if (!table.live(id)) continue;
    const Structure& s = table.at(id);
    if (is_map_kind(s.kind)) dump_map(store, id, s, found);
    else dump_list(store, id, s, found);
  }
  std::vector<Outcome> last;
  found.sequence = store.last_of(kClient, last);
  return found.dump();
}

std::string dump_of(Image image, std::vector<SimDisk::Event>& events) {
  try {
    Store store(std::make_unique<SimDisk>(std::move(image), events), small_options());
    return dump(store);
  } catch (const StoreError& error) {
    return std::string("error: ") + error.what();
  }
}

// ---- the history -----------------------------------------------------------------------------------------------------

History::History(uint64_t seed) : random_(seed) {
  std::vector<Kind> kinds{Kind::dict,   Kind::sorted_dict,    Kind::skip_list, Kind::bst,
                          Kind::mv_bst, Kind::mv_sorted_dict, Kind::stack,     Kind::queue};
  for (size_t i = 0; i < 3; ++i) {
    std::swap(kinds[i], kinds[i + random_() % (kinds.size() - i)]);
    named_.push_back({std::string(1, static_cast<char>('a' + i)), kinds[i]});
  }
}

void History::fail_at(uint64_t number, Fault fault, uint64_t count, bool done) { failure_ = {number, count, fault, done}; }

void History::run(uint64_t operations, bool stop) {
  states.push_back({Model{}.dump(), 0});
  attempt([&] { open(); });
  for (uint64_t i = 0; i < operations && !failed; ++i) step();
  if (stop || failed || store_ == nullptr) return;
  attempt([&] { store_->close(); });
  store_.reset();
}

// A failed operation may or may not have taken effect: the model goes on as if it had, and the run ends there.
template <class Act>
void History::attempt(Act&& act) {
  try {
    act();
  } catch (const StoreError&) {
    if (failure_.count == 0) throw;
    failed = true;
  }
}

void History::open() {
  Image now;
  for (const auto& e : events) SimDisk::apply(e, now);
  auto disk = std::make_unique<SimDisk>(std::move(now), events);
  disk->fail_at(failure_.at, failure_.fault, failure_.count, failure_.done);
  store_.reset();
  store_ = std::make_unique<Store>(std::move(disk), small_options());
}

void History::step() {
  const uint64_t dice = random_() % 100;
  if (dice < 4) {
    // Half of them with an operation that waits for nothing: only the checkpoint makes it durable.
    const bool waits = random_() % 2 == 0 && transaction(1, Level::process);
    attempt([&] { store_->checkpoint(); });
    if (waits) states.back().acknowledged = events.size();
  } else if (dice < 7) {
    attempt([&] {
      if (dice < 6) store_->close();
      open();
    });
  } else if (dice < 16) {
    make_or_drop();
  } else {
    transaction(dice < 70 ? 1 : 1 + random_() % 6, Level::power);
  }
}

void History::make_or_drop() {
  const Named& s = named_[random_() % named_.size()];
  const bool present = model_.has(s.name);
  if (present && random_() % 3 != 0) return;
  if (present) {
    model_.maps.erase(s.name);
    model_.lists.erase(s.name);
    attempt([&] { store_->drop(store_->structure(s.name, s.kind, false)); });
  } else {
    if (is_map_kind(s.kind)) model_.maps[s.name];
    else model_.lists[s.name];
    attempt([&] { store_->structure(s.name, s.kind, true); });
  }
  acknowledge();
}

bool History::transaction(uint64_t size, Level level) {
  if (model_.maps.empty() && model_.lists.empty()) return false;
  held_.clear();
  std::vector<Operation> operations;
  while (operations.size() < size) {
    const Named& s = named_[random_() % named_.size()];
    if (!model_.has(s.name)) continue;
    if (is_map_kind(s.kind)) change_map(s, operations);
    else change_list(s, operations);
  }
  OperationId id;
  if (random_() % 4 == 0) id = {kClient, ++model_.sequence};
  std::vector<Outcome> outcomes(operations.size());
  attempt([&] {
    store_->commit(operations.data(), operations.size(), outcomes.data(), level, id);
    // Asked again by the same name, nothing may happen.
    if (id.client != 0) store_->commit(operations.data(), operations.size(), outcomes.data(), level, id);
  });
  acknowledge();
  return true;
}

void History::change_map(const Named& s, std::vector<Operation>& operations) {
  const uint32_t id = store_->structure(s.name, s.kind, false);
  const Bytes key = keep("k" + std::to_string(random_() % 24)), value = keep(some_value());
  auto& map = model_.maps[s.name];
  if (random_() % 4 == 0) {
    operations.push_back({Verb::erase, id, key, {}});
    map.erase(std::string(key));
  } else {
    operations.push_back({Verb::put, id, key, value});
    map[std::string(key)] = std::string(value);
  }
}

void History::change_list(const Named& s, std::vector<Operation>& operations) {
  const uint32_t id = store_->structure(s.name, s.kind, false);
  auto& list = model_.lists[s.name];
  if (random_() % 2 == 0) {
    const Bytes value = keep(some_value());
    operations.push_back({s.kind == Kind::stack ? Verb::push : Verb::enqueue, id, value, {}});
    list.emplace_back(value);
  } else if (s.kind == Kind::stack) {
    operations.push_back({Verb::pop, id, {}, {}});
    if (!list.empty()) list.pop_back();
  } else {
    operations.push_back({Verb::take, id, keep(std::string(8, '\0')), {}, 1000, 0});
    if (!list.empty()) list.pop_front();
  }
}

std::string History::some_value() {
  const uint64_t dice = random_() % 20;
  const size_t size = dice == 0 ? 9000 : dice < 4 ? 700 : random_() % 40;
  return std::string(size, static_cast<char>('a' + random_() % 26));
}

}  // namespace statepool::store
