// Binds Linear and the row quantiser.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/variant.h>

#include "gemm.h"

namespace nb = nanobind;
using statepool::Linear;
using statepool::Output;
using statepool::QuantRows;
using statepool::WeightMode;

namespace {

template <class T, int Dims>
using Array = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Weight = std::variant<Array<const float, 2>, Array<const uint16_t, 2>>;

constexpr const char* kModes[] = {"int8", "int4", "bf16", "fp32"};

WeightMode parse_mode(const std::string& name) {
  for (int i = 0; i < 4; ++i)
    if (name == kModes[i]) return static_cast<WeightMode>(i);
  throw std::invalid_argument("mode: '" + name + "' is none of int8, int4, bf16, fp32");
}

std::unique_ptr<Linear> make(const Weight& weight, const std::string& mode_name,
                             const std::optional<Array<const float, 1>>& bias) {
  const WeightMode mode = parse_mode(mode_name);
  return std::visit(
      [&](const auto& array) {
        if (bias && bias->shape(0) != array.shape(0))
          throw std::invalid_argument("bias: must have as many items as weight has rows");
        const auto* data = array.data();
        const auto n = static_cast<int64_t>(array.shape(0)), k = static_cast<int64_t>(array.shape(1));
        nb::gil_scoped_release release;
        return std::make_unique<Linear>(data, n, k, mode, bias ? bias->data() : nullptr);
      },
      weight);
}

void apply(const Linear& self, Array<const float, 2> x, Array<float, 2> out,
           const std::optional<Array<const float, 2>>& residual) {
  const auto rows = static_cast<int64_t>(x.shape(0));
  if (static_cast<int64_t>(x.shape(1)) != self.k()) throw std::invalid_argument("x: must be [rows, k]");
  if (static_cast<int64_t>(out.shape(0)) != rows || static_cast<int64_t>(out.shape(1)) != self.n())
    throw std::invalid_argument("out: must be [rows, n]");
  if (residual && (residual->shape(0) != out.shape(0) || residual->shape(1) != out.shape(1)))
    throw std::invalid_argument("residual: must be [rows, n]");
  Output output{out.data(), self.n(), residual ? residual->data() : nullptr};
  nb::gil_scoped_release release;
  self.run(x.data(), rows, output);
}

void dequantize(const Linear& self, Array<float, 2> out) {
  if (static_cast<int64_t>(out.shape(0)) != self.n() || static_cast<int64_t>(out.shape(1)) != self.k())
    throw std::invalid_argument("out: must be [n, k]");
  nb::gil_scoped_release release;
  self.dequantize(out.data());
}

void quantize(Array<const float, 2> x, Array<int8_t, 2> data, Array<float, 1> scales) {
  if (data.shape(0) != x.shape(0) || data.shape(1) != x.shape(1))
    throw std::invalid_argument("data: must have the shape of x");
  if (scales.shape(0) != x.shape(0)) throw std::invalid_argument("scales: must have one item per row of x");
  const auto rows = static_cast<int64_t>(x.shape(0)), columns = static_cast<int64_t>(x.shape(1));
  nb::gil_scoped_release release;
  QuantRows quantized;
  statepool::quantize_rows(x.data(), rows, columns, quantized);
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(data.data() + row * columns, quantized.data.data() + row * quantized.k, static_cast<size_t>(columns));
  std::memcpy(scales.data(), quantized.scales.data(), static_cast<size_t>(rows) * sizeof(float));
}

}  // namespace

void bind_linear(nb::module_& m) {
  nb::class_<Linear>(m, "Linear",
                     "Packed weights [n, k] and y = x W^T + bias. Rows of y do not depend on each other, on threads or "
                     "on the instruction set.")
      .def(nb::new_(&make), nb::arg("weight").noconvert(), nb::arg("mode") = "int8",
           nb::arg("bias").noconvert() = nb::none(),
           "weight: float32 [n, k], or bf16 bits as uint16. mode: int8, int4 (groups of 64), bf16 or fp32. bias: "
           "float32 [n]. Raises ValueError for NaN or infinite weights and for k above 65536.")
      .def_prop_ro("n", &Linear::n, "Outputs.")
      .def_prop_ro("k", &Linear::k, "Inputs.")
      .def_prop_ro("mode", [](const Linear& self) { return std::string(kModes[static_cast<int>(self.mode())]); },
                   "Weight mode: int8, int4, bf16 or fp32.")
      .def_prop_ro("nbytes", &Linear::nbytes, "Bytes held: packed weights, scales and bias.")
      .def("apply", &apply, nb::arg("x").noconvert(), nb::arg("out").noconvert(),
           nb::arg("residual").noconvert() = nb::none(),
           "out = x W^T + bias (+ residual). x: float32 [rows, k]; out, residual: float32 [rows, n]; residual may be "
           "out. A row with a NaN or infinity gives NaN in the quantised modes.")
      .def("dequantize", &dequantize, nb::arg("out").noconvert(), "Writes the weights as used, float32 [n, k].");
  m.def("quantize", &quantize, nb::arg("x").noconvert(), nb::arg("data").noconvert(), nb::arg("scales").noconvert(),
        "Rows of x [rows, k] to int8: scale = amax/127, data = round-to-even(x * (127/amax)).");
}
