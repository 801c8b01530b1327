// Ends a walk that a changing structure leads around in circles.
#pragma once

#include "../heap.h"

namespace statepool::store {

class Steps {
 public:
  // most: of the steps that a walk through a structure at rest can take.
  explicit Steps(uint64_t most) : left_(most) {}
  void next() {
    if (left_-- == 0) throw Torn{};
  }

 private:
  uint64_t left_;
};

}  // namespace statepool::store
