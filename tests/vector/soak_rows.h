// Rows that the soaks search.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

constexpr int kDim = 16;

inline std::vector<float> rows_of(int count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(static_cast<size_t>(count) * kDim);
  for (float& x : rows) x = normal(random);
  return rows;
}
