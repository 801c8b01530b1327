// The engines by name, and what is made of their lanes at the end.
#pragma once

#include <vector>

#include "query.h"
#include "sealed.h"
#include "walk.h"

namespace statepool::graph {

// Search with query.request.engine on query.request.threads threads.
void run_engine(const Walk& walk, Query& query);
// The same over quantised rows. Raises std::invalid_argument for edge, iqan and roles, which hand out single distances.
void run_engine(const SealedWalk& walk, Query& query);
struct LiveWalk;
void run_engine(const LiveWalk& walk, Query& query);

// Sums over the lanes.
Counts total(Query& query);

// The `count` nearest of all lanes, a node once; from the lists of exact distances if the pools hold estimates.
void gather(Query& query, bool estimates, int count, Pool& merged, std::vector<Entry>& nearest);

}  // namespace statepool::graph
