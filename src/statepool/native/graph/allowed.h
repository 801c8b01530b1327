// Which rows a search may answer with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace statepool::graph {

// A byte per row, not 0 for those allowed. Rows behind the end came later and are not.
struct Allowed {
  const uint8_t* bytes;
  size_t count;
  bool operator()(uint32_t row) const { return row < count && bytes[row] != 0; }
};

}  // namespace statepool::graph
