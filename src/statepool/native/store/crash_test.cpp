#include "crash_test.h"

#include <algorithm>
#include <deque>
#include <map>
#include <random>

#include "sim_disk.h"
#include "store.h"

namespace statepool::store {
namespace {

StoreOptions small() {
  StoreOptions options;
  options.capacity = 8 << 20;
  options.segment_size = 64 << 10;
  options.ring = 256 << 10;
  options.journal = 256 << 10;
  options.checkpoint_bytes = 1ull << 40;  // only when the history asks for one
  options.shared = false;
  return options;
}

struct Named {
  const char* name;
  Kind kind;
};
constexpr Named kStructures[] = {{"d", Kind::dict},       {"t", Kind::sorted_dict},     {"l", Kind::skip_list}, {"b", Kind::bst},
                                 {"vb", Kind::mv_bst},    {"vt", Kind::mv_sorted_dict}, {"s", Kind::stack},     {"q", Kind::queue}};

bool is_map_kind(Kind kind) { return kind != Kind::stack && kind != Kind::queue; }

// What the store must hold, kept by plain containers.
struct Model {
  std::map<std::string, std::map<std::string, std::string>> maps;
  std::map<std::string, std::deque<std::string>> lists;

  std::string dump() const {
    std::string out;
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
};

std::string dump(const Store& store) {
  Model found;
  const Table& table = store.structures();
  for (uint32_t id = 0; id < table.size(); ++id) {
    if (!table.live(id)) continue;
    const Structure& s = table.at(id);
    std::vector<Entry> entries;
    if (s.kind == Kind::dict) {
      auto& map = found.maps[s.name];
      uint64_t cursor = 0;
      do {
        cursor = store.scan(id, cursor, entries);
        for (Entry& e : entries) map[e.key] = e.value;
      } while (cursor != 0);
      if (map.size() != store.size(id)) throw StoreError(Fault::corrupt, s.name + ": its size is wrong");
    } else if (is_map_kind(s.kind)) {
      auto& map = found.maps[s.name];
      store.scan(id, Range{}, ~size_t{0}, entries);
      for (Entry& e : entries) map[e.key] = e.value;
      if (entries.size() != store.size(id)) throw StoreError(Fault::corrupt, s.name + ": its size is wrong");
    } else {
      std::vector<std::pair<uint64_t, std::string>> values;
      store.peek(id, 0, ~size_t{0}, values);
      auto& list = found.lists[s.name];
      for (auto& [number, value] : values) list.push_back(value);
      if (s.kind == Kind::stack) std::reverse(list.begin(), list.end());
      if (list.size() != store.size(id)) throw StoreError(Fault::corrupt, s.name + ": its size is wrong");
    }
  }
  return found.dump();
}

// One run of a store, and after each step what it must hold and when that was acknowledged.
class History {
 public:
  explicit History(uint64_t seed) : random_(seed) {}

  void run(uint64_t operations) {
    states.push_back({"", 0});
    open();
    for (uint64_t i = 0; i < operations; ++i) step();
    if (store_ != nullptr) store_->close();
    store_.reset();
  }

  struct State {
    std::string dump;
    size_t acknowledged;  // events there had been then
  };
  std::vector<State> states;
  std::vector<SimDisk::Event> events;
  Image start;  // nothing

 private:
  void open() {
    Image now = start;
    for (const auto& e : events) apply(e, now);
    store_ = std::make_unique<Store>(std::make_unique<SimDisk>(std::move(now), events), small());
  }
  static void apply(const SimDisk::Event& e, Image& image) {
    const std::vector<SimDisk::Event> one{e};  // outlives the Crash, which points into it
    image = Crash(image, one, 1).image([](size_t) { return true; }, true);
  }

  void step() {
    const uint64_t dice = random_() % 100;
    if (dice < 4) {
      store_->checkpoint();
    } else if (dice < 6) {
      store_->close();
      open();
    } else if (dice < 12) {
      make_or_drop();
    } else {
      transaction(dice < 70 ? 1 : 1 + random_() % 6);
    }
  }

  void acknowledge() { states.push_back({model_.dump(), events.size()}); }

  void make_or_drop() {
    const Named& s = kStructures[random_() % std::size(kStructures)];
    const bool present = model_.maps.count(s.name) + model_.lists.count(s.name) > 0;
    if (present && random_() % 3 != 0) return;
    if (present) {
      store_->drop(store_->structure(s.name, s.kind, false));
      model_.maps.erase(s.name);
      model_.lists.erase(s.name);
    } else {
      store_->structure(s.name, s.kind, true);
      if (is_map_kind(s.kind)) model_.maps[s.name];
      else model_.lists[s.name];
    }
    acknowledge();
  }

  void transaction(uint64_t size) {
    std::vector<Operation> operations;
    std::deque<std::string> held;  // what the operations point at
    const auto keep = [&](std::string bytes) -> Bytes { return held.emplace_back(std::move(bytes)); };
    while (operations.size() < size) {
      const Named& s = kStructures[random_() % std::size(kStructures)];
      if (model_.maps.count(s.name) + model_.lists.count(s.name) == 0) {
        if (operations.empty() && model_.maps.empty() && model_.lists.empty()) return;
        continue;
      }
      const uint32_t id = store_->structure(s.name, s.kind, false);
      const Bytes key = keep("k" + std::to_string(random_() % 24)), value = keep(some_value());
      if (is_map_kind(s.kind)) {
        auto& map = model_.maps[s.name];
        if (random_() % 4 == 0) {
          operations.push_back({Verb::erase, id, key, {}});
          map.erase(std::string(key));
        } else {
          operations.push_back({Verb::put, id, key, value});
          map[std::string(key)] = std::string(value);
        }
        continue;
      }
      auto& list = model_.lists[s.name];
      if (random_() % 2 == 0) {
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
    std::vector<Outcome> outcomes(operations.size());
    store_->commit(operations.data(), operations.size(), outcomes.data(), Level::power);
    acknowledge();
  }

  std::string some_value() {
    const uint64_t dice = random_() % 20;
    const size_t size = dice == 0 ? 9000 : dice < 4 ? 700 : random_() % 40;
    return std::string(size, static_cast<char>('a' + random_() % 26));
  }

  std::mt19937_64 random_;
  Model model_;
  std::unique_ptr<Store> store_;
};

class Enumerator {
 public:
  Enumerator(const History& history, uint64_t seed, CrashReport& report) : history_(history), random_(seed), report_(report) {}

  void run() {
    for (size_t point = 0; point <= history_.events.size() && report_.violation.empty(); ++point) {
      // What was acknowledged by then must be there; what came after may be, in its order.
      size_t least = 0;
      while (least + 1 < history_.states.size() && history_.states[least + 1].acknowledged <= point) ++least;
      each_image(Crash(history_.start, history_.events, point), [&](Image image) {
        const bool deeper = report_.states % 128 == 0;
        check(std::move(image), least, point, deeper);
      });
    }
  }

 private:
  template <class Visit>
  void each_image(const Crash& crash, Visit&& visit) {
    crash.each_choice(random_, [&](const Crash::Keep& keep, bool directory) {
      visit(crash.image(keep, directory));
      return report_.violation.empty();
    });
  }

  void check(Image image, size_t least, size_t point, bool deeper) {
    ++report_.states;
    const Image before = deeper ? image : Image{};
    std::vector<SimDisk::Event> events;
    const std::string found = open(std::move(image), events);
    bool fits = false;
    for (size_t s = least; s < history_.states.size() && !fits; ++s) fits = history_.states[s].dump == found;
    if (!fits) {
      report_.violation = "power cut at event " + std::to_string(point) + " of " + std::to_string(history_.events.size()) +
                          ": opening gave " + (found.size() > 300 ? found.substr(0, 300) + "..." : found);
      return;
    }
    if (!deeper) return;
    for (size_t again = 0; again <= events.size(); ++again)
      each_image(Crash(before, events, again), [&](Image second) {
        ++report_.again;
        check(std::move(second), least, point, false);
      });
  }

  // What a store holds after opening, or the error.
  static std::string open(Image image, std::vector<SimDisk::Event>& events) {
    try {
      const Store store(std::make_unique<SimDisk>(std::move(image), events), small());
      std::string found = dump(store);
      return found;
    } catch (const StoreError& error) {
      return std::string("error: ") + error.what();
    }
  }

  const History& history_;
  std::mt19937_64 random_;
  CrashReport& report_;
};

}  // namespace

CrashReport crash_test(uint64_t seed, uint64_t operations) {
  CrashReport report;
  History history(seed);
  history.run(operations);
  report.events = history.events.size();
  report.operations = operations;
  Enumerator(history, seed, report).run();
  return report;
}

}  // namespace statepool::store
