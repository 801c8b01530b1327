// What a power cut, a failing disk and rotten bytes do to a store, tried in all or very many ways (crash_history.h).
#pragma once

#include <cstdint>
#include <string>

namespace statepool::store {

struct CrashReport {
  uint64_t states = 0, again = 0;  // images opened; of them after a crash during the opening of another
  uint64_t events = 0, operations = 0;
  std::string violation;           // the first one found, empty if there is none
};

// All are deterministic: the same seed gives the same report.

// The power is cut at every event of a history. What is found must be the state after the last acknowledged operation
// or that of the one in flight.
CrashReport crash_test(uint64_t seed, uint64_t operations);
// The disk fails at every event, once or from then on, with and without the write taking place: nothing acknowledged
// may be lost, and after a failed write to the log the store must refuse further ones.
CrashReport fault_test(uint64_t seed, uint64_t operations);
// `flips` times one file is damaged, by a bit, some bytes or its end: opening must say so, or give exactly what was there. Of a store that was killed
// the last frame may be gone, for that is what a torn write leaves; of one that was closed nothing may.
CrashReport rot_test(uint64_t seed, uint64_t operations, uint64_t flips);

}  // namespace statepool::store
