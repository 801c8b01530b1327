// A fixed random rotation: rounds of sign flips, Hadamard blocks and an interleaving of the blocks.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "scan.h"

namespace statepool::graph {

// Spreads a vector's energy evenly over its dimensions, so that one bit of each says the same. Distances stay.
class Rotation {
 public:
  Rotation(int dims, uint64_t seed) : dims_(dims) {
    while (dims % (2 * block_) == 0) block_ *= 2;
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 0x1234567u;
    for (int i = 0; i < kRounds * dims; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      signs_.push_back((state >> 40 & 1u) ? 1.0f : -1.0f);
    }
  }

  void apply(float* x, float* scratch) const {
    const int blocks = dims_ / block_;
    for (int round = 0; round < kRounds; ++round) {
      const float* signs = signs_.data() + round * dims_;
      for (int i = 0; i < dims_; ++i) x[i] *= signs[i];
      for (int b = 0; b < blocks; ++b) scan_kernels().hadamard(x + b * block_, block_);
      if (blocks == 1 || round == kRounds - 1) continue;
      for (int b = 0; b < blocks; ++b)
        for (int i = 0; i < block_; ++i) scratch[i * blocks + b] = x[b * block_ + i];
      std::memcpy(x, scratch, sizeof(float) * static_cast<size_t>(dims_));
    }
  }

 private:
  static constexpr int kRounds = 3;
  int dims_, block_ = 16;
  std::vector<float> signs_;
};

}  // namespace statepool::graph
