// What the searches over sequences spend their time in; the decisions are in search.cpp.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace statepool {

// Zeros on both sides of a padded row and the largest code the int16 sums of `flips` can hold.
constexpr int kShortest = 2, kLongest = 181;
// The largest pair the 16-bit sums of `quad_flips` can hold, whatever its correlations: n cubed over 3 is below 65,536.
constexpr int kLongestQuads = 57;

struct SequenceKernels {
  // Bytes of scratch that `sir` and `sir_flips` need for filters of this length.
  int64_t (*scratch)(int length);
  // out[count]: signal to interference ratio of each row of codes[count][n] (values +-1) with the best filter of
  // `length` taps, in double; NaN where rounding left no interference. `ridge` is the power of white noise.
  void (*sir)(const int8_t* codes, int64_t count, int n, int length, double ridge, void* scratch, double* out);
  // out[n + 1]: the same of `code` with symbol i flipped, in single precision; out[n] of `code` itself.
  void (*sir_flips)(const int8_t* code, int n, int length, float ridge, void* scratch, float* out);
  // rho[n]: the autocorrelation of one code.
  void (*autocorrelation)(const int8_t* code, int n, int32_t* rho);
  // For every i below `count`: product[i] = sum over lags k of weight[k] * t, square[i] = sum of t * t, where
  // t = code[i + k] + code[i - k], lags k = step, 2 step, ... below n. `padded` points at the first of these symbols in a
  // row with zeros from -n to 2n + 31; both outputs hold `count` rounded up to 32.
  void (*flips)(const int16_t* padded, const int16_t* weight, int n, int count, int step, int16_t* product, int16_t* square);
  // cost[i]: cost of the pair whose correlation sums are `sums` after symbol i is flipped: sums squared, those of lags
  // in [loose_from, loose_to) less 4 and at least 0. `padded` and the size of the output as for `flips`.
  void (*pair_flips)(const int16_t* padded, const int16_t* sums, int n, int loose_from, int loose_to, int32_t* cost);
  // level[6][32]: for i below n / 2, the sum of squares of `halves` (correlation sums over 2) after two flips among the
  // symbols i and n - 1 - i of a pair: both of a, both of b, and one of each in four ways. rows: a, a reversed, b,
  // b reversed, padded.
  void (*quad_flips)(const int16_t* const* rows, const int16_t* halves, int n, uint16_t* level);
};

}  // namespace statepool

STATEPOOL_KERNELS(SequenceKernels, sequence_kernels)
