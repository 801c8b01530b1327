// Edge-parallel fork and join (baseline: the parallel searcher of VSAG): each hop's neighbours are cut into equal slices.
#pragma once

#include "query.h"
#include "rounds.h"

namespace statepool::graph {

class Edge {
 public:
  Edge(const Walk& walk, Query& query)
      : walk_(walk), query_(query), rounds_(query.request.threads, &Edge::slice, this) {}

  void run() {
    Lane& lane = query_.lane(0);
    enter(walk_, query_, 0, 1);
    for (uint32_t node = pick(walk_, lane, kNoBound); node != kNone && !query_.late(); node = pick(walk_, lane, kNoBound)) {
      walk_.meet(node, lane.hits);
      ++lane.counts.hops;
      rounds_.run();
      keep(lane, kNoBound);
      lane.jitter.maybe();
    }
  }

 private:
  static void slice(void* shared, int part, int parts) {
    Edge& self = *static_cast<Edge*>(shared);
    Hits& hits = self.query_.lane(0).hits;
    const int first = hits.count * part / parts, last = hits.count * (part + 1) / parts;
    self.walk_.measure(hits, first, last - first);
    self.query_.lane(part).counts.distances += static_cast<uint64_t>(last - first);
    if (part != 0) self.query_.lane(part).jitter.maybe();
  }

  const Walk& walk_;
  Query& query_;
  Rounds rounds_;
};

}  // namespace statepool::graph
