// The Python module of the sequence room: codes in, correlations and ratios out, rounds of search with the GIL released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <string>

#include "kernels.h"
#include "search.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace statepool::sequences;
using statepool::sequence_kernels;

namespace {

using Codes = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> owned(std::unique_ptr<T[]> data, std::initializer_list<size_t> shape) {
  T* raw = data.release();
  return {raw, shape, nb::capsule(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); })};
}

void check(bool condition, const char* message) {
  if (!condition) throw nb::value_error(message);
}

nb::ndarray<nb::numpy, int32_t> autocorrelations(const Codes& codes) {
  const size_t count = codes.shape(0), n = codes.shape(1);
  auto rho = std::make_unique<int32_t[]>(count * n);
  {
    nb::gil_scoped_release free;
    for (size_t row = 0; row < count; ++row) sequence_kernels().autocorrelation(codes.data() + row * n, int(n), &rho[row * n]);
  }
  return owned(std::move(rho), {count, n});
}

nb::ndarray<nb::numpy, double> sir(const Codes& codes, int length, double ridge) {
  const size_t count = codes.shape(0), n = codes.shape(1);
  check(n >= 1 && length >= int(n), "length: must be at least the number of symbols");
  auto out = std::make_unique<double[]>(count);
  if (count) {
    nb::gil_scoped_release free;
    std::vector<double> scratch(sequence_kernels().scratch(length) / 8 + 1);
    sequence_kernels().sir(codes.data(), int64_t(count), int(n), length, ridge, scratch.data(), out.get());
  }
  return owned(std::move(out), {count});
}

Plan plan(uint64_t seed, int64_t first, int64_t rounds, const std::string& method, int64_t patience, double target) {
  check(method == "tabu" || method == "walk", "method: must be tabu or walk");
  check(first >= 0 && rounds >= 1 && patience >= 1, "first, rounds, patience: must not be negative or zero");
  return {seed, first, rounds, method == "tabu" ? Method::tabu : Method::walk, patience, target};
}

nb::tuple answer(const Found& found) {
  auto code = std::make_unique<int8_t[]>(found.code.size());
  std::copy(found.code.begin(), found.code.end(), code.get());
  return nb::make_tuple(owned(std::move(code), {found.code.size()}), found.cost, found.round, found.rounds, found.evaluations);
}

}  // namespace

NB_MODULE(_sequences, m) {
  m.doc() = "Kernels and local search over sequences. statepool.tasks.sequences is its face.";
  m.attr("LONGEST") = statepool::kLongest;
  m.def("isa", [] { return statepool::isa_name(statepool::active_isa()); }, "The instruction set in use.");
  m.def("set_isa", &statepool::set_isa, "name"_a, "Use another instruction set; False if this machine lacks it.");
  m.def("autocorrelations", &autocorrelations, "codes"_a, "rho[count, n] of codes[count, n].");
  m.def("sir", &sir, "codes"_a, "length"_a, "ridge"_a = 0.0, "Ratio of each code with its best filter; NaN where rounding decides.");
  m.def(
      "search_energy",
      [](int n, bool skew, uint64_t seed, int64_t first, int64_t rounds, const std::string& method, int64_t patience, double target) {
        check(n >= statepool::kShortest && n <= statepool::kLongest, "n: must be from 2 to 181");
        check(!skew || n % 2, "n: skew-symmetric codes have odd lengths");
        const Plan how = plan(seed, first, rounds, method, patience, target);
        Found found;
        {
          nb::gil_scoped_release free;
          found = search_energy(n, skew, how);
        }
        return answer(found);
      },
      "n"_a, "skew"_a, "seed"_a, "first"_a, "rounds"_a, "method"_a, "patience"_a, "target"_a);
  m.def(
      "search_sir",
      [](int n, int length, double ridge, uint64_t seed, int64_t first, int64_t rounds, const std::string& method, int64_t patience,
         double target) {
        check(n >= statepool::kShortest && length >= n, "length: must be at least n, and n at least 2");
        const Plan how = plan(seed, first, rounds, method, patience, target);
        Found found;
        {
          nb::gil_scoped_release free;
          found = search_sir(n, length, ridge, how);
        }
        return answer(found);
      },
      "n"_a, "length"_a, "ridge"_a, "seed"_a, "first"_a, "rounds"_a, "method"_a, "patience"_a, "target"_a);
  m.def(
      "search_pair",
      [](int n, int loose_from, int loose_to, uint64_t seed, int64_t first, int64_t rounds, const std::string& method, int64_t patience,
         double target) {
        check(n >= statepool::kShortest && n <= statepool::kLongest, "n: must be from 2 to 181");
        const Plan how = plan(seed, first, rounds, method, patience, target);
        Found found;
        {
          nb::gil_scoped_release free;
          found = search_pair(n, loose_from, loose_to, how);
        }
        return answer(found);
      },
      "n"_a, "loose_from"_a, "loose_to"_a, "seed"_a, "first"_a, "rounds"_a, "method"_a, "patience"_a, "target"_a);
}
