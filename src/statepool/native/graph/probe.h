// What two threads cost each other on this machine; the simulator's constants come from here.
#pragma once

namespace statepool::graph {

struct Handoffs {
  double one_way_ns;   // a value stored by one thread until another one sees it
  double round_ns;     // a round of Rounds in which nobody has anything to do
  double start_ns;     // a query's helper that spins: from asking for it until its first instruction is seen
  double merge_ns;     // one entry of another thread's pool into the own one
};

// Medians over `rounds`. All are 0 when no helper came in time, as on a machine with one busy core.
Handoffs measure_handoffs(int rounds);

}  // namespace statepool::graph
