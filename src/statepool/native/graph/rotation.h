// A fixed random rotation: rounds of sign flips and a Hadamard transform, in turn of the first and the last dimensions.
#pragma once

#include <cstdint>
#include <vector>

#include "scan.h"

namespace statepool::graph {

// Spreads a vector's energy evenly over its dimensions, so that one bit of each says the same. Distances stay.
class Rotation {
 public:
  Rotation(int dims, uint64_t seed) : dims_(dims) {
    while (2 * window_ <= dims) window_ *= 2;
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 0x1234567u;
    for (int i = 0; i < kRounds * window_; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      signs_.push_back((state >> 40 & 1u) ? 1.0f : -1.0f);
    }
  }

  void apply(float* x) const {
    for (int round = 0; round < kRounds; ++round)
      scan_kernels().hadamard(x + (round % 2 == 0 ? 0 : dims_ - window_), signs_.data() + round * window_, window_);
  }

 private:
  static constexpr int kRounds = 4;
  int dims_, window_ = 16;  // the window is the largest power of two that fits
  std::vector<float> signs_;
};

}  // namespace statepool::graph
