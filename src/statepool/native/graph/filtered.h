// Search among the rows a caller allows. One thread. Distances at stored precision, but for `check` over a sealed index,
// which goes by the codes.
//
// `check`: every row leads on until enough allowed ones did, only these are answers; for filters that most rows pass.
// `two_hops`: only allowed rows are candidates, and a neighbour that is not is stood in for by its own neighbours (ACORN-1,
// Patel et al., SIGMOD 2024, section 6). `scan`: all allowed rows.
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
  int enough;  // allowed rows: a `check` ends once so many are nearer than all that could lead on
  Allowed allowed;
  std::vector<uint32_t> seeds;  // allowed rows that `two_hops` starts from too, for the graph among them may have several parts
  // Before `two_hops`: candidates of a small `check`, and which share of them must be allowed for going on. What it found
  // takes the place of the seeds. 0: none.
  int probe = 0;
  float least = 0;
};

// `graph` has size(), entries(), links(node, buffer, count), sound_row(node), distances(ids, count, out); `answers(node)`
// says which of the allowed rows may be found. Leaves the request.kept nearest in `query.lane(0).best`; answers which
// share of the candidates was allowed, at the end or after the probe: far below that of all rows, the filter keeps away
// from the query.
template <class Graph, class Answers>
class FilteredSearch {
 public:
  FilteredSearch(const Graph& graph, const Answers& answers, Query& query, Visited& visited)
      : graph_(graph), answers_(answers), query_(query), visited_(visited), lane_(query.lane(0)) {}

  float run(const Filter& filter) {
    const int width = query_.request.width;
    const bool probing = filter.way == Way::two_hops && filter.probe > 0;
    ends_ = filter.way == Way::check;
    const int kept = probing ? width : ends_ ? filter.enough : 0;
    lane_.begin(probing ? filter.probe : width, std::max(kept, query_.request.kept));
    visited_.reset(graph_.size());
    lane_.hits.count = 0;
    if (filter.way == Way::scan) {
      scan(filter.allowed);
      return 1;
    }
    for (const uint32_t node : graph_.entries()) meet(node);
    if (filter.way == Way::two_hops && !probing)
      for (const uint32_t node : filter.seeds)
        if (node < graph_.size() && answers_(node)) meet(node);
    measure();
    search(probing ? Way::check : filter.way, filter.allowed);
    int passing = 0;
    for (int i = 0; i < lane_.pool.size(); ++i) passing += answers_(id_of(lane_.pool.at(i)));
    const float share = lane_.pool.size() == 0 ? 1 : static_cast<float>(passing) / static_cast<float>(lane_.pool.size());
    if (!probing || share < filter.least) return share;
    // The way there leads on from the allowed rows near the query. Those that were met and not kept are farther than all of
    // a full list, so none is answered twice.
    visited_.reset(graph_.size());
    lane_.pool.reset(width);
    for (int i = 0; i < lane_.best.size(); ++i) visited_.claim(id_of(lane_.best.at(i)));
    lane_.pool.insert(lane_.best.begin(), lane_.best.size());
    search(Way::two_hops, filter.allowed);
    return share;
  }

 private:
  void search(Way way, const Allowed& allowed) {
    for (int i = lane_.pool.next(); i < lane_.pool.size() && !query_.late(); i = lane_.pool.next()) {
      const uint32_t node = id_of(lane_.pool.at(i));
      if (ends_ && lane_.best.full() && lane_.best.bound() < lane_.pool.at(i)) return;
      lane_.pool.mark(i);
      ++lane_.counts.hops;
      if (way == Way::check) expand(node);
      else expand_allowed(node, allowed);
      if (const int next = lane_.pool.next(); next < lane_.pool.size()) graph_.fetch(id_of(lane_.pool.at(next)));
      measure();
    }
  }

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

  void expand(uint32_t node) {
    uint32_t near[kMostDegree];
    int count = 0;
    const uint32_t* links = graph_.links(node, near, count);
    for (int i = 0; i < count; ++i) visited_.prefetch(links[i]);
    for (int i = 0; i < count; ++i) meet(links[i]);
  }

  // The allowed neighbours, then those of the others in turn, until there are as many as an unfiltered node would have.
  void expand_allowed(uint32_t node, const Allowed& allowed) {
    uint32_t near[kMostDegree], far[kMostDegree], between[kMostDegree];
    int count = 0, others = 0, met = 0;
    const uint32_t* links = graph_.links(node, near, count);
    for (int i = 0; i < count; ++i) visited_.prefetch(links[i]);
    for (int i = 0; i < count; ++i) {
      if (allowed(links[i])) met += meet(links[i]);
      else if (!visited_.seen(links[i])) between[others++] = links[i];
    }
    for (int i = 0; i < others && i < kAhead; ++i) graph_.fetch(between[i]);
    for (int i = 0; i < others && met < kEnough; ++i) {
      if (i + kAhead < others) graph_.fetch(between[i + kAhead]);
      visited_.claim(between[i]);
      int more = 0;
      const uint32_t* behind = graph_.links(between[i], far, more);
      for (int j = 0; j < more; ++j)
        if (allowed(behind[j])) met += meet(behind[j]);
    }
  }

  bool meet(uint32_t node) {
    if (!visited_.claim(node) || !graph_.sound_row(node)) return false;
    lane_.hits.ids[lane_.hits.count++] = node;
    if (lane_.hits.count == kMostDegree) measure();
    return true;
  }

  void measure() {
    Hits& hits = lane_.hits;
    graph_.distances(hits.ids, hits.count, hits.distances);
    lane_.counts.distances += static_cast<uint64_t>(hits.count);
    Entry good[kMostDegree];
    int count = 0;
    for (int i = 0; i < hits.count; ++i) {
      good[count] = entry_of(hits.distances[i], hits.ids[i]);
      count += good[count] < lane_.best.bound() && answers_(hits.ids[i]);
    }
    lane_.best.insert(good, count);
    keep(lane_, kNoBound);
    hits.count = 0;
  }

  static constexpr int kAhead = 6;    // lists of links in flight
  static constexpr int kEnough = 32;  // rows met by one expansion

  const Graph& graph_;
  const Answers& answers_;
  Query& query_;
  Visited& visited_;
  Lane& lane_;
  bool ends_ = false;  // once the candidates before the next one include all of `best`
};

}  // namespace statepool::graph
