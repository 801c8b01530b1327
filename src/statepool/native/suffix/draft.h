// What a suffix structure answers: tokens with their parents (-1: the context) and the chance that each is reached.
#pragma once

#include <cstdint>
#include <vector>

namespace statepool::suffix {

struct Draft {
  std::vector<int32_t> tokens, parents;
  std::vector<float> chances;
  float score = 0;
  int match = 0;
};

}  // namespace statepool::suffix
