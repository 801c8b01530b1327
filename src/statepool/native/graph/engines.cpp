#include "engines.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "async.h"
#include "edge.h"
#include "iqan.h"
#include "live.h"
#include "nosync.h"
#include "roles.h"

namespace statepool::graph {
namespace {

template <class AnyWalk>
void run_shared(const AnyWalk& walk, Query& query) {
  switch (query.request.engine) {
    case Engine::nosync: return NoSync<AnyWalk>(walk, query).run();
    default: return Async<AnyWalk>(walk, query).run();
  }
}

template <class AnyWalk>
bool run_alone(const AnyWalk& walk, Query& query) {
  if (query.request.threads > 1 && query.request.engine != Engine::sequential) return false;
  enter(walk, query, 0, 1);
  search_alone(walk, query, query.lane(0), std::numeric_limits<uint32_t>::max(), kNoBound);
  return true;
}

template <class AnyWalk>
void run_either(const AnyWalk& walk, Query& query, const char* needed) {
  if (run_alone(walk, query)) return;
  if (query.request.engine != Engine::async && query.request.engine != Engine::nosync)
    throw std::invalid_argument(std::string("engines edge, iqan and roles need an index that is ") + needed);
  run_shared(walk, query);
}

}  // namespace

void run_engine(const Walk& walk, Query& query) {
  if (run_alone(walk, query)) return;
  if (query.request.engine == Engine::edge) return Edge(walk, query).run();
  if (query.request.engine == Engine::iqan) return Iqan(walk, query).run();
  if (query.request.engine == Engine::roles) return Roles(walk, query).run();
  run_shared(walk, query);
}

void run_engine(const SealedWalk& walk, Query& query) { run_either(walk, query, "not sealed"); }
void run_engine(const LiveWalk& walk, Query& query) { run_either(walk, query, "built and not changed since"); }

Counts total(Query& query) {
  Counts sum;
  sum.threads = 0;
  for (int i = 0; i < query.request.threads; ++i) {
    const Counts& one = query.lane(i).counts;
    sum.distances += one.distances;
    sum.most = std::max(sum.most, one.distances);
    sum.hops += one.hops;
    sum.thresholds += one.thresholds;
    sum.threads += one.distances > 0;
  }
  sum.truncated = query.stop.load(std::memory_order_relaxed);
  return sum;
}

void gather(Query& query, bool estimates, int count, Pool& merged, std::vector<Entry>& nearest) {
  if (query.request.threads == 1) {
    const Pool& only = estimates ? query.lane(0).best : query.lane(0).pool;
    nearest.reserve(static_cast<size_t>(std::min(count, only.size())));
    for (int i = 0; i < std::min(count, only.size()); ++i) nearest.push_back(only.at(i) & ~Entry{1});
    return;
  }
  merged.reset(count);
  for (int i = 0; i < query.request.threads; ++i) {
    if (!query.lane(i).begun) continue;
    const Pool& pool = estimates ? query.lane(i).best : query.lane(i).pool;
    // Two threads may have met the same node.
    for (int j = 0; j < pool.size() && pool.at(j) < merged.bound(); ++j) merged.insert_once(pool.at(j) & ~Entry{1});
  }
  for (int i = 0; i < merged.size(); ++i) nearest.push_back(merged.at(i));
}

}  // namespace statepool::graph
