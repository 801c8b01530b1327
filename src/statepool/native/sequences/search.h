// Local search over sequences of +-1: rounds that depend on a seed and their number only, so any of them can be run
// again, skipped or given to another process.
#pragma once

#include <cstdint>
#include <vector>

namespace statepool::sequences {

enum class Method { tabu, walk };

struct Plan {
  uint64_t seed = 0;
  int64_t first = 0, rounds = 1;  // rounds [first, first + rounds)
  Method method = Method::tabu;
  int64_t patience = 0;           // tabu: steps without progress before a round ends; walk: steps of a round
  double target = 0;              // stop at a cost no larger than this
};

struct Found {
  std::vector<int8_t> code;  // both codes of a pair, one after the other
  double cost = 0;
  int64_t round = 0, rounds = 0, evaluations = 0;
};

// Energy of the aperiodic autocorrelation; with `skew`, among skew-symmetric codes of odd length only.
Found search_energy(int n, bool skew, const Plan& plan);
// Minus the signal to interference ratio with a filter of `length` taps and white noise of power `ridge`. Rounds start
// at a chirp of random rate cut to +-1, or, every third round, at a random code.
Found search_sir(int n, int length, double ridge, const Plan& plan);
// Cost of a pair: correlation sums squared, less 4 (at least 0) at lags in [loose_from, loose_to).
// Up to kLongestQuads symbols it stays among the pairs whose sums leave the right remainders modulo 4: the product of the
// symbols i and n - 1 - i of both codes is then known for every i.
Found search_pair(int n, int loose_from, int loose_to, const Plan& plan);

}  // namespace statepool::sequences
