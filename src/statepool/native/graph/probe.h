// What two threads cost each other on this machine; the simulator's constants come from here.
#pragma once

#include <cstddef>

#include "segment.h"

namespace statepool::graph {

struct Handoffs {
  double one_way_ns;   // a value stored by one thread until another one sees it
  double round_ns;     // a round of Rounds in which a list of ids goes to two threads and a number for each comes back
  double start_ns;     // a query's helper that spins: from asking for it until its first instruction is seen
  double merge_ns;     // one entry of another thread's pool into the own one
};

// Medians over `rounds`. All are 0 when no helper came in time, as on a machine with one busy core.
Handoffs measure_handoffs(int rounds);

// What the parts of an expansion cost one thread, each timed on its own, so that together they take longer than an
// expansion does: the parts of the next one overlap them there. Their shares count.
struct Steps {
  double meet_ns;    // choosing a candidate and looking at the tags of its neighbours
  double first_ns;   // before the first of a list of distances is there
  double row_ns;     // each distance of the list
  double insert_ns;  // each of them, on its way into the pool
};

// Means over searches of `queries` (space.dim floats each) by pools of `width`.
Steps measure_steps(const Segment& segment, const float* queries, size_t count, int width);

// The same searches by one thread, and as one of two that share the tags of what was met and nothing else: all
// queries one way, then the other, since what was just searched is in the cache. All 0 when no helper came in time.
struct Beside {
  double alone_ns, alone_hops, alone_distances;  // sums of all queries
  double ns, hops, distances;                    // of the first of the two threads
};
Beside measure_beside(const Segment& segment, const float* queries, size_t count, int width);

}  // namespace statepool::graph
