// The crash enumerator: a drawn history of operations on a simulated disk, the power cut at every point of it, in every
// way (or in many), and what opening then gives compared with a model.
#pragma once

#include <cstdint>
#include <string>

namespace statepool::store {

struct CrashReport {
  uint64_t states = 0, again = 0;  // images opened; of them after a crash during the opening of another
  uint64_t events = 0, operations = 0;
  std::string violation;           // the first one found, empty if there is none
};

// Deterministic: the same seed gives the same report.
CrashReport crash_test(uint64_t seed, uint64_t operations);

}  // namespace statepool::store
