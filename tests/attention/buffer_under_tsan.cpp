// Steps of two readers and a third who stores and drops segments, over one small wave buffer; built with a sanitizer of
// threads. Prints "done" if every row that was read was what had been stored.
#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "sparse/cluster_cache.h"

using namespace statepool;

constexpr int64_t kHeads = 2, kClusters = 40, kRows = 11, kBytes = 64, kTokens = kClusters * kRows;

std::shared_ptr<StoredRows> put(const std::shared_ptr<ClusterCache>& cache, char seed) {
  std::vector<char> rows(kHeads * 2 * kTokens * kBytes);
  std::vector<int32_t> offsets(kHeads * (kClusters + 1));
  for (int64_t h = 0; h < kHeads; ++h)
    for (int64_t c = 0; c <= kClusters; ++c) {
      offsets[h * (kClusters + 1) + c] = static_cast<int32_t>(c * kRows);
      if (c < kClusters)
        std::memset(&rows[(h * 2 * kTokens + 2 * c * kRows) * kBytes], seed + static_cast<char>(c + h), 2 * kRows * kBytes);
    }
  return ClusterCache::store(cache, rows.data(), kHeads, kTokens, offsets.data(), kClusters);
}

std::atomic<int64_t> wrong{0};

void check(const char* page, int64_t rows, char expected) {
  for (int64_t i = 0; i < rows * kBytes; ++i) wrong += page[i] != expected || page[kPageRows * kBytes + i] != expected;
}

// As WaveIndex::decode_from_file does it: look up and fetch head by head, use what is there, wait, use the rest, finish.
void step(ClusterCache& cache, StoredRows& stored, char seed, unsigned draw) {
  std::vector<Wanted> wanted(kHeads);
  const auto lock = cache.open(kHeads);
  const auto head = [&](size_t h) {
    std::minstd_rand random(draw + static_cast<unsigned>(h));
    std::vector<int64_t> clusters;
    for (int64_t c = 0; c < kClusters; ++c)
      if (random() % 4 == 0) clusters.push_back(c);
    cache.settle();
    for (const int64_t c : clusters) {
      Slot& slot = stored.slot(static_cast<int64_t>(h), c);
      wanted[h].slots.push_back(&slot);
      if (slot.page < 0) wanted[h].misses.push_back({&slot, static_cast<size_t>(c), nullptr});
    }
    cache.fetch(h, wanted[h]);
    for (const int64_t c : clusters) {
      int32_t page = stored.slot(static_cast<int64_t>(h), c).page;
      for (int64_t left = kRows; page >= 0 && left > 0; left -= kPageRows, page = cache.next(page))
        check(cache.page(page), std::min(left, kPageRows), static_cast<char>(seed + c + static_cast<int64_t>(h)));
    }
    cache.wait(static_cast<int64_t>(h));
    for (const Miss& miss : wanted[h].misses)
      for (int64_t row = 0; row < kRows; row += kPageRows)
        check(miss.from + row / kPageRows * cache.page_bytes(), std::min(kPageRows, kRows - row),
              static_cast<char>(seed + static_cast<int64_t>(miss.run) + static_cast<int64_t>(h)));
  };
  std::thread second(head, 1);
  head(0);
  second.join();
  cache.finish(wanted);
}

int main(int, char** arguments) {
  const int file = open(arguments[1], O_RDWR | O_CREAT, 0600);
  auto cache = std::make_shared<ClusterCache>(file, kBytes, 30, true);
  const auto stored = put(cache, 1);
  std::atomic<bool> over{false};
  std::thread passer([&] {
    for (char seed = 2; !over; seed = static_cast<char>(seed % 50 + 1)) {
      const auto passing = put(cache, seed);
      step(*cache, *passing, seed, static_cast<unsigned>(seed));
    }
  });
  std::vector<std::thread> readers;
  for (unsigned reader = 0; reader < 2; ++reader)
    readers.emplace_back([&, reader] {
      for (unsigned i = 0; i < 150; ++i) step(*cache, *stored, 1, 1000 * reader + 7 * i + 1);
    });
  for (std::thread& reader : readers) reader.join();
  over = true;
  passer.join();
  const CacheCounts counts = cache->counts();
  if (wrong != 0 || counts.evicted < 100 || counts.hits < 100) {
    std::printf("%lld bytes wrong, %lld evicted, %lld hits\n", static_cast<long long>(wrong), static_cast<long long>(counts.evicted),
                static_cast<long long>(counts.hits));
    return 1;
  }
  std::puts("done");
  return 0;
}
