// One writer and four readers of one heap, built with -fsanitize=thread by test_tsan.py.
//
// The readers use the owner's mapping: ThreadSanitizer knows memory by its address in this process, so a second mapping
// of the same pages would hide every race from it. The code they run is that of other processes (view.cpp).
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "posix_disk.h"
#include "store.h"

using namespace statepool::store;

namespace {

constexpr int kKeys = 200, kReaders = 4, kHot = 1000;

std::string key_of(int i) { return "key " + std::to_string(i); }

// Says its key and repeats one letter, so that two values mixed show.
std::string value_of(int i, uint64_t round) {
  return key_of(i) + ":" + std::string(round * 37 % 300, static_cast<char>('a' + round % 26));
}

bool whole(int i, const std::string& value) {
  const std::string prefix = key_of(i) + ":";
  return value.compare(0, prefix.size(), prefix) == 0 &&
         value.find_first_not_of(value.size() > prefix.size() ? value.back() : 'x', prefix.size()) == std::string::npos;
}

}  // namespace

int main(int, char** arguments) {
  StoreOptions options;
  options.capacity = 64 << 20;
  options.segment_size = 1 << 20;
  options.level = Level::process;
  options.shared = false;
  Store store(std::make_unique<PosixDisk>(arguments[1], true), options);
  const uint64_t rounds = std::strtoull(arguments[2], nullptr, 10);
  std::vector<uint32_t> ids;
  for (const Kind kind : {Kind::dict, Kind::sorted_dict, Kind::skip_list, Kind::bst, Kind::mv_bst, Kind::mv_sorted_dict})
    ids.push_back(store.structure("s" + std::to_string(static_cast<int>(kind)), kind, true));
  const uint32_t queue = store.structure("q", Kind::queue, true), stack = store.structure("st", Kind::stack, true);

  // A table that grows from nothing, is dropped, and grows again: (id << 32 | keys it surely has).
  constexpr uint64_t kGrown = 6000, kStep = 12;
  std::atomic<uint64_t> growing{uint64_t{store.structure("g", Kind::dict, true)} << 32};
  std::atomic<uint64_t> grown_reads{0};

  std::atomic<bool> done{false};
  std::atomic<uint64_t> reads{0}, torn{0};
  std::vector<std::thread> readers;
  for (int r = 0; r < kReaders; ++r)
    readers.emplace_back([&, r] {
      std::string value;
      uint64_t lsn = 0;
      std::vector<Entry> page;
      std::vector<std::pair<uint64_t, std::string>> items;
      for (int i = r; !done; i = (i + 7) % kKeys) {
        for (const uint32_t id : ids)
          if (store.get(id, key_of(i), value, lsn) && !whole(i, value)) ++torn;
        for (size_t k = 1; k < ids.size(); ++k) {
          store.scan(ids[k], Range{}, 20, page);
          for (size_t e = 1; e < page.size(); ++e) torn += page[e - 1].key >= page[e].key;
        }
        if (store.get(ids[0], key_of(kHot), value, lsn) && !whole(kHot, value)) ++torn;
        const uint64_t present = growing, count = present & 0xffffffff;
        try {
          for (uint64_t k = count > 50 ? count - 50 : 0; k < count + 3; ++k) {
            const int wanted = static_cast<int>(k % 7 == 0 ? k * 31 % (count + 1) : k);
            const bool found = store.get(static_cast<uint32_t>(present >> 32), key_of(wanted), value, lsn);
            if (found ? !whole(wanted, value) : wanted < static_cast<int>(count)) ++torn;
            ++grown_reads;
          }
        } catch (const StoreError& error) {
          if (error.fault != Fault::missing) ++torn;  // dropped meanwhile
        }
        store.peek(queue, 0, 5, items);
        store.peek(stack, 0, 5, items);
        reads += 2 * ids.size() + 1;
      }
    });
  for (uint64_t round = 1; round <= rounds; ++round) {
    const int i = static_cast<int>(round * 31 % kKeys);
    const std::string key = key_of(i), value = value_of(i, round);
    std::vector<Operation> operations;
    for (const uint32_t id : ids)
      operations.push_back({round % 5 == 0 ? Verb::erase : Verb::put, id, key, round % 5 == 0 ? Bytes() : Bytes(value)});
    operations.push_back({Verb::enqueue, queue, value, {}});
    operations.push_back({round % 2 == 0 ? Verb::pop : Verb::push, stack, value, {}});
    std::vector<Outcome> outcomes(operations.size());
    store.commit(operations.data(), operations.size(), outcomes.data(), Level::process);
    uint64_t id = growing >> 32, count = growing & 0xffffffff;
    if (count >= kGrown) {
      store.drop(static_cast<uint32_t>(id));
      id = store.structure("g", Kind::dict, true), count = 0;
    }
    for (uint64_t k = 0; k < kStep; ++k, ++count) {
      const int n = static_cast<int>(count);
      const std::string fresh = key_of(n), filler = value_of(n, round);
      const Operation put{Verb::put, static_cast<uint32_t>(id), fresh, filler};
      store.commit(&put, 1, outcomes.data(), Level::process);
      // One entry is rewritten in place all the time.
      const std::string hot = key_of(kHot), letters = key_of(kHot) + ":" + std::string(2000, static_cast<char>('a' + count % 26));
      const Operation rewrite{Verb::put, ids[0], hot, letters};
      store.commit(&rewrite, 1, outcomes.data(), Level::process);
    }
    growing = id << 32 | count;
    if (round % 500 == 0) store.checkpoint();
  }
  done = true;
  for (std::thread& reader : readers) reader.join();
  const auto number = [](uint64_t n) { return static_cast<unsigned long long>(n); };
  std::printf("%llu reads, %llu of a growing table, %llu torn, %llu retries\n", number(reads), number(grown_reads),
              number(torn), number(store.retries()));
  return torn == 0 && reads > 0 && grown_reads > 0 ? 0 : 1;
}
