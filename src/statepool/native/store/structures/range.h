// A range of keys in the order of their bytes, and one operation of a batch. Shared by all sorted structures.
#pragma once

#include <string>

#include "../bytes.h"

namespace statepool::store {

struct Range {
  std::string low, high;
  bool has_low = false, has_high = false, include_low = true, include_high = false, reverse = false;
};

struct BatchOp {
  enum Kind : uint8_t { put, erase } kind;
  Bytes key, value;
};

}  // namespace statepool::store
