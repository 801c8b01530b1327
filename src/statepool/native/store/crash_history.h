// A drawn history of operations on a simulated disk, and after each of them what the store must hold.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "sim_disk.h"
#include "store.h"

namespace statepool::store {

StoreOptions small_options();

// What a store must hold, kept by plain containers.
struct Model {
  std::map<std::string, std::map<std::string, std::string>> maps;
  std::map<std::string, std::deque<std::string>> lists;
  uint64_t sequence = 0;  // of the client's last named operation

  bool has(const std::string& name) const { return maps.count(name) + lists.count(name) > 0; }
  std::string dump() const;
};

// The same of a store. StoreError corrupt if its structures contradict themselves.
std::string dump(Store& store);
// The same of one opened from these files, or "error: " and what it raised.
std::string dump_of(Image image, std::vector<SimDisk::Event>& events);

class History {
 public:
  explicit History(uint64_t seed);

  // Ends with the store closed, unless `stop` says that it is killed. A disk that is made to fail raises StoreError.
  void run(uint64_t operations, bool stop = false);
  // The disk fails after so many events, see SimDisk::fail_at.
  void fail_at(uint64_t number, Fault fault, uint64_t count, bool done);
  Store* store() { return store_.get(); }

  struct State {
    std::string dump;
    size_t acknowledged;  // events there had been then
  };
  // After each operation. The last one is that of the operation that failed, if one did: it may have taken effect.
  std::vector<State> states;
  std::vector<SimDisk::Event> events;
  bool failed = false;

 private:
  struct Named {
    std::string name;
    Kind kind;
  };

  void open();
  void step();
  void make_or_drop();
  bool transaction(uint64_t size, Level level);  // false: there is no structure to change
  void change_map(const Named& s, std::vector<Operation>& operations);
  void change_list(const Named& s, std::vector<Operation>& operations);
  void acknowledge() { states.push_back({model_.dump(), events.size()}); }
  template <class Act>
  void attempt(Act&& act);
  Bytes keep(std::string bytes) { return held_.emplace_back(std::move(bytes)); }
  std::string some_value();

  std::mt19937_64 random_;
  std::vector<Named> named_;  // three of the eight kinds: the heap stays small
  Model model_;
  std::deque<std::string> held_;  // what the operations of a transaction point at
  std::unique_ptr<Store> store_;
  struct {
    uint64_t at = 0, count = 0;
    Fault fault = Fault::unknown;
    bool done = false;
  } failure_;
};

}  // namespace statepool::store
