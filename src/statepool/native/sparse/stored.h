// Arrays of what is stored: bf16 bits or float32.
#pragma once

#include "../arrays.h"

namespace statepool {

template <int Dims>
using Stored = nanobind::ndarray<nanobind::ndim<Dims>, nanobind::c_contig, nanobind::device::cpu>;

template <class A>
inline bool is_bf16(const A& array, const char* message) {
  const bool bf16 = array.dtype() == nanobind::dtype<uint16_t>();
  require(bf16 || array.dtype() == nanobind::dtype<float>(), message);
  return bf16;
}

}  // namespace statepool
