// Many tiny searches by every engine with more threads than cores and naps at the places where threads meet.
//
// The pool is wider than the index, so whatever the threads do, each must find exactly what looking at every row finds: a
// lost candidate is a wrong answer here, and a lost wake-up is a hang. Usage: soak QUERIES
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <thread>
#include <vector>

#include "build.h"
#include "index.h"
#include "soak_rows.h"

using namespace statepool::graph;

namespace {

constexpr int kRows = 80, kQueries = 64, kNearest = 8;

}  // namespace

int main(int, char** arguments) {
  const long rounds = std::atol(arguments[1]);
  const std::vector<float> rows = rows_of(kRows, 1), queries = rows_of(kQueries, 2);
  Index plain(Space(Metric::l2, statepool::Dtype::f32, kDim), 16), sealed(Space(Metric::l2, statepool::Dtype::f32, kDim), 16);
  for (Index* index : {&plain, &sealed}) {
    index->load_rows(rows.data(), kRows);
    BuildOptions options;
    options.threads = 2;
    options.window = 60;
    build(*index->segment(), options);
  }
  sealed.seal(2, 0);
  std::vector<Answer> truth;
  for (int q = 0; q < kQueries; ++q) truth.push_back(plain.exact(queries.data() + q * kDim, kNearest));

  std::atomic<long> wrong{0}, helped{0};
  Lease leases[2] = {Lease(1), Lease(1)};
  Cores cores(3, 1000);
  std::atomic<bool> done{false};
  std::thread lender([&] {  // calls helpers back at any moment
    for (uint64_t i = 0; !done; ++i) {
      leases[i % 2].lower(1 + static_cast<int>(i / 2 % 3));
      if (i % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(1 + i % 100));
      else std::this_thread::yield();
    }
  });
  const auto ask = [&](long first, long step) {
    for (long i = first; i < rounds; i += step) {
      const int q = static_cast<int>(i % kQueries);
      Request request;
      request.k = kNearest;
      request.threads = 2 + static_cast<int>(i / 3 % 7);
      request.jitter = i % 4 == 0 ? 0 : static_cast<uint64_t>(i) + 1;
      request.local_hops = 1 + static_cast<int>(i % 8);
      const bool quantised = i % 10 == 9;
      request.width = quantised ? 34 * kRows : kRows;  // a sealed search meets a node once per neighbour, at estimates
      constexpr Engine kPlain[] = {Engine::async, Engine::roles, Engine::async, Engine::nosync, Engine::roles, Engine::iqan, Engine::edge};
      request.engine = quantised ? (i % 20 == 9 ? Engine::async : Engine::nosync) : kPlain[i / 5 % 7];
      Lease& lease = leases[first];
      bool wide = false;
      std::optional<Cores::Grant> grant;  // of cores that the callers lend each other
      if (i % 7 < 2) {
        grant.emplace(cores, request.threads, i % 7 == 0, request.engine == Engine::async);
        request.threads = grant->threads();
        request.lease = grant->lease();
        request.granted = true;
      } else if (i % 6 >= 3) {
        lease.threads = request.threads;
        request.lease = &lease;
        // So many candidates that no threshold is ever known: then somebody must have expanded every row, and one that a
        // helper left and nobody took over is missing.
        wide = request.engine == Engine::async && !quantised;
        if (wide) request.width = 4 * kRows;
      }
      const Answer found = (quantised ? sealed : plain).search(queries.data() + q * kDim, request);
      const Answer& wanted = truth[static_cast<size_t>(q)];
      helped += found.counts.threads > 1;
      const bool all = !wide || found.counts.hops >= static_cast<uint64_t>(kRows);
      if (found.nearest == wanted.nearest && all) continue;
      ++wrong;
      std::printf("search %ld: engine %d, %d threads, %zu found, ndc %llu\n", i, static_cast<int>(request.engine), request.threads,
                  found.nearest.size(), static_cast<unsigned long long>(found.counts.distances));
    }
  };
  std::thread other([&] { ask(1, 2); });  // two callers, so that helpers change hands
  ask(0, 2);
  other.join();
  done = true;
  lender.join();
  std::printf("%ld searches, %ld with help, %ld wrong\n", rounds, helped.load(), wrong.load());
  return wrong == 0 && helped > 0 ? 0 : 1;
}
