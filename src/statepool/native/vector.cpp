// Binds the element-wise kernels; they are small, and mostly there so that tests can compare instruction sets.
#include "vector.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

namespace nb = nanobind;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using HalvesOut = nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

namespace {

void same_size(size_t x, size_t out) {
  if (x != out) throw std::invalid_argument("out: must have as many items as x");
}

}  // namespace

void bind_vector(nb::module_& m) {
  m.def(
      "exp",
      [](Floats x, FloatsOut out) {
        same_size(x.size(), out.size());
        statepool::vector_kernels().exp(x.data(), out.data(), static_cast<int64_t>(x.size()));
      },
      nb::arg("x").noconvert(), nb::arg("out").noconvert(), nb::call_guard<nb::gil_scoped_release>(),
      "out = e**x with the polynomial of softmax and silu: 0 below -87.3, held at e**88 above.");
  m.def(
      "to_bf16",
      [](Floats x, HalvesOut out) {
        same_size(x.size(), out.size());
        statepool::vector_kernels().to_bf16(x.data(), out.data(), static_cast<int64_t>(x.size()));
      },
      nb::arg("x").noconvert(), nb::arg("out").noconvert(), nb::call_guard<nb::gil_scoped_release>(),
      "float32 to bf16 bits, nearest even.");
  m.def(
      "from_bf16",
      [](Halves x, FloatsOut out) {
        same_size(x.size(), out.size());
        statepool::vector_kernels().from_bf16(x.data(), out.data(), static_cast<int64_t>(x.size()));
      },
      nb::arg("x").noconvert(), nb::arg("out").noconvert(), nb::call_guard<nb::gil_scoped_release>(),
      "bf16 bits to float32, exact.");
  m.def(
      "sum",
      [](Floats x) { return statepool::vector_kernels().sum(x.data(), static_cast<int64_t>(x.size())); },
      nb::arg("x").noconvert(), nb::call_guard<nb::gil_scoped_release>(),
      "Sum in the fixed order: sixteen lanes ascending, then the tree 16-8-4-2-1.");
}
