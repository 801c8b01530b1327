// One step of a search over the plain graph: the neighbours of a node that nobody met yet, with their distances.
#pragma once

#include <cstdint>

#include "segment.h"
#include "visited.h"

namespace statepool::graph {

constexpr int kMostDegree = 128;

// What expanding a node found.
struct Hits {
  int count = 0;
  float own = 0;  // of the node itself, from walks whose other distances are estimates
  uint32_t ids[kMostDegree];
  float distances[kMostDegree];
};

// A query over a segment, shared by the threads that work on it.
struct Walk {
  const Segment& segment;
  const float* query;  // space.dims floats
  Visited& visited;

  static constexpr bool kEstimates = false;
  static constexpr bool kAhead = false;
  static constexpr int kLeastGift = 1;

  // Nodes were claimed when they were met.
  bool open(uint32_t) const { return true; }
  void fetch(uint32_t node) const {
    const char* links = reinterpret_cast<const char*>(segment.links(node));
    for (int byte = 0; byte < 4 * segment.degree; byte += 64) __builtin_prefetch(links + byte);
  }
  // The unmet neighbours only, without distances; `measure` does a slice of them.
  void meet(uint32_t node, Hits& hits) const { collect(node, hits); }
  void measure(Hits& hits, int first, int count) const {
    segment.space.distances(query, segment.rows(), hits.ids + first, count, hits.distances + first);
  }
  void expand(uint32_t node, Hits& hits) const {
    collect(node, hits);
    segment.space.distances(query, segment.rows(), hits.ids, hits.count, hits.distances);
  }
  // The entries of which this part is the `part`-th of `parts`.
  void enter(int part, int parts, Hits& hits) const {
    hits.count = 0;
    const std::vector<uint32_t>& nodes = segment.entries;
    for (size_t i = static_cast<size_t>(part) % nodes.size(); i < nodes.size(); i += static_cast<size_t>(parts))
      if (segment.sound_row(nodes[i]) && visited.claim(nodes[i])) hits.ids[hits.count++] = nodes[i];
    segment.space.distances(query, segment.rows(), hits.ids, hits.count, hits.distances);
  }

 private:
  void collect(uint32_t node, Hits& hits) const {
    constexpr int kAhead = 8;
    hits.count = 0;
    if (!segment.sound_links(node)) return;
    const uint32_t* links = segment.links(node);
    const int degree = segment.degree;
    for (int i = 0; i < kAhead && links[i] != kNone; ++i) visited.prefetch(links[i]);
    int count = 0;
    for (int i = 0; i < degree && links[i] != kNone; ++i) {
      if (i + kAhead < degree && links[i + kAhead] != kNone) visited.prefetch(links[i + kAhead]);
      hits.ids[count] = links[i];
      count += visited.claim(links[i]);
    }
    if (segment.guard != nullptr) {
      const int met = count;
      count = 0;
      for (int i = 0; i < met; ++i)
        if (segment.sound_row(hits.ids[i])) hits.ids[count++] = hits.ids[i];
    }
    hits.count = count;
  }
};

}  // namespace statepool::graph
