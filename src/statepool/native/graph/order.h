// Keeping a sorted array of candidates without a branch that could be mispredicted.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace statepool {

struct OrderKernels {
  // `entries` is sorted and full: places not taken hold the largest value, and the memory goes on to a multiple of 8. Each key below the entry at `last` is inserted, what falls off the end is lost. Answers
  // how many were.
  int (*insert)(int64_t* entries, int last, const int64_t* keys, int count);
  // Index of the first even entry from the block of eight that holds `from` on, `count` if there is none.
  int (*first_even)(const int64_t* entries, int from, int count);
};

}  // namespace statepool

STATEPOOL_KERNELS(OrderKernels, order_kernels)
