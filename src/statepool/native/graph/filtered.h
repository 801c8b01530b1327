// Search among the rows a caller allows. One thread. Distances at stored precision, but for `check` over a sealed index,
// which goes by the codes.
//
// `check`: every row leads on, only allowed ones are answers; for filters that most rows pass. `two_hops`: only allowed rows
// are candidates, and a neighbour that is not is stood in for by its own neighbours (ACORN-1, Patel et al., SIGMOD 2024,
// section 6). `scan`: all allowed rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "allowed.h"
#include "query.h"
#include "visited.h"
#include "walk.h"

namespace statepool::graph {

enum class Way : int { scan = 0, check = 1, two_hops = 2 };

struct Filter {
  Way way;
  Allowed allowed;
  std::vector<uint32_t> seeds;  // allowed rows a search starts from too, for the graph among them may have several parts
};

// `graph` has size(), entries(), links(node, buffer, count), sound_row(node), distances(ids, count, out); `answers(node)`
// says which of the allowed rows may be found. Leaves the request.kept nearest in `query.lane(0).best`; answers which
// share of the candidates left at the end was allowed: far below that of all rows, the filter keeps away from the query.
template <class Graph, class Answers>
class FilteredSearch {
 public:
  FilteredSearch(const Graph& graph, const Answers& answers, Query& query, Visited& visited)
      : graph_(graph), answers_(answers), query_(query), visited_(visited), lane_(query.lane(0)) {}

  float run(const Filter& filter) {
    lane_.begin(query_.request.width, query_.request.kept);
    visited_.reset(graph_.size());
    lane_.hits.count = 0;
    if (filter.way == Way::scan) {
      scan(filter.allowed);
      return 1;
    }
    for (const uint32_t node : graph_.entries()) meet(node);
    for (const uint32_t node : filter.seeds)
      if (node < graph_.size() && answers_(node)) meet(node);
    measure();
    for (int i = lane_.pool.next(); i < lane_.pool.size() && !query_.late(); i = lane_.pool.next()) {
      const uint32_t node = id_of(lane_.pool.at(i));
      lane_.pool.mark(i);
      ++lane_.counts.hops;
      expand(node, filter);
      measure();
    }
    int passing = 0;
    for (int i = 0; i < lane_.pool.size(); ++i) passing += answers_(id_of(lane_.pool.at(i)));
    return lane_.pool.size() == 0 ? 1 : static_cast<float>(passing) / static_cast<float>(lane_.pool.size());
  }

 private:
  void scan(const Allowed& allowed) {
    const size_t count = std::min(graph_.size(), allowed.count);
    for (size_t first = 0; first < count && !query_.late(); first += 8) {
      uint64_t word = 0;
      const size_t some = std::min<size_t>(8, count - first);
      std::memcpy(&word, allowed.bytes + first, some);
      if (word == 0) continue;
      for (size_t i = first; i < first + some; ++i)
        if (answers_(static_cast<uint32_t>(i))) meet(static_cast<uint32_t>(i));
    }
    measure();
  }

  void expand(uint32_t node, const Filter& filter) {
    uint32_t near[kMostDegree], far[kMostDegree];
    int count = 0;
    const uint32_t* links = graph_.links(node, near, count);
    for (int i = 0; i < count; ++i) {
      if (visited_.seen(links[i])) continue;
      if (filter.way == Way::check || filter.allowed(links[i])) {
        meet(links[i]);
        continue;
      }
      visited_.claim(links[i]);
      int more = 0;
      const uint32_t* behind = graph_.links(links[i], far, more);
      for (int j = 0; j < more; ++j)
        if (filter.allowed(behind[j])) meet(behind[j]);
    }
  }

  void meet(uint32_t node) {
    if (!visited_.claim(node) || !graph_.sound_row(node)) return;
    lane_.hits.ids[lane_.hits.count++] = node;
    if (lane_.hits.count == kMostDegree) measure();
  }

  void measure() {
    Hits& hits = lane_.hits;
    graph_.distances(hits.ids, hits.count, hits.distances);
    lane_.counts.distances += static_cast<uint64_t>(hits.count);
    for (int i = 0; i < hits.count; ++i)
      if (answers_(hits.ids[i])) lane_.best.insert(entry_of(hits.distances[i], hits.ids[i]));
    keep(lane_, kNoBound);
    hits.count = 0;
  }

  const Graph& graph_;
  const Answers& answers_;
  Query& query_;
  Visited& visited_;
  Lane& lane_;
};

}  // namespace statepool::graph
