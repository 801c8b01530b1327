// Threads that add, replace, delete, repair and search one small live segment. Usage: live_soak ROUNDS
//
// Labels below kFixed are never touched after the start, and the pool is wider than the segment: every search must find
// each of them, however the rest changes. In the end every row must be reachable.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "filtered.h"
#include "live.h"
#include "soak_rows.h"

using namespace statepool::graph;

namespace {

constexpr int kFixed = 40, kEach = 60, kWriters = 4, kSearchers = 3;

}  // namespace

int main(int, char** arguments) {
  const int rounds = std::atoi(arguments[1]);
  LiveSegment segment(Space(Metric::l2, statepool::Dtype::f32, kDim), 16, 4000, 40, 1.1f);
  std::vector<uint64_t> fixed(kFixed);
  for (size_t i = 0; i < fixed.size(); ++i) fixed[i] = i;
  segment.add(rows_of(kFixed, 1).data(), fixed.data(), segment.take_slots(kFixed).data(), kFixed);
  const std::vector<uint8_t> all(4000, 1);
  std::atomic<int> writing{kWriters};
  std::atomic<long> wrong{0}, searches{0}, repaired{0};

  std::vector<std::thread> threads;
  for (int writer = 0; writer < kWriters; ++writer)
    threads.emplace_back([&, writer] {
      std::vector<uint64_t> labels(kEach);
      for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<uint64_t>(1000 * (writer + 1)) + i;
      for (int round = 0; round < rounds; ++round) {
        const std::vector<float> rows = rows_of(kEach, static_cast<uint64_t>(round * kWriters + writer));
        segment.add(rows.data(), labels.data(), segment.take_slots(kEach).data(), kEach);
        segment.update(rows.data() + kDim, labels.data(), segment.take_slots(kEach / 2).data(), kEach / 2);
        wrong += segment.erase(labels.data(), kEach) != kEach;
        if (round % 3 == writer % 3) repaired += static_cast<long>(segment.repair());
        if (segment.dead() > 2000)
          while (segment.dead() > 1000) repaired += static_cast<long>(segment.repair());
      }
      --writing;
    });
  for (int searcher = 0; searcher < kSearchers; ++searcher)
    threads.emplace_back([&, searcher] {
      Request request;
      request.k = 4000;
      request.width = 4000;
      request.threads = 1 + searcher;
      const std::vector<float> queries = rows_of(16, static_cast<uint64_t>(90 + searcher));
      for (size_t i = 0; writing > 0; i = (i + 1) % 16) {
        request.jitter = searcher == 2 ? i + 1 : 0;
        const LiveSegment::Found found = segment.search(queries.data() + i * kDim, request);
        int known = 0;
        for (const uint64_t label : found.labels) known += label < kFixed;
        wrong += known != kFixed;
        ++searches;
        try {
          const Filter filter{static_cast<Way>(i % 3), 4000, {all.data(), all.size()}, {0, 1, 2, 3}, static_cast<int>(i % 2) * 32, 0.0f};
          float share = 0;
          const uint64_t turnover = segment.turnover();
          known = 0;
          for (const uint64_t label : segment.search_filtered(queries.data() + i * kDim, request, filter, false, turnover, share).labels)
            known += label < kFixed;
          wrong += known != kFixed;
        } catch (const StaleError&) {
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  segment.repair();
  wrong += static_cast<long>(segment.unreachable()) + (segment.size() != kFixed) + (segment.dead() != 0);
  std::printf("%ld searches, %ld rows repaired, %ld wrong\n", searches.load(), repaired.load(), wrong.load());
  return wrong != 0 || repaired == 0;
}
