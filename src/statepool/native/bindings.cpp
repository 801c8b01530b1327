// The Python module. Each family registers itself in one bind_ function beside its kernels.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "isa.h"
#include "pool.h"

namespace nb = nanobind;

void bind_vector(nb::module_& m);
void bind_linear(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_layer(nb::module_& m);
void bind_sample(nb::module_& m);
void bind_gradient(nb::module_& m);
void bind_moba(nb::module_& m);
void bind_blocks(nb::module_& m);
void bind_wave(nb::module_& m);
void bind_prefixes(nb::module_& m);
void bind_wave_buffer(nb::module_& m);
void bind_checksum(nb::module_& m);

NB_MODULE(_kernels, m) {
  m.doc() = "Kernels over bytes: no policy, the GIL released, the same bits on every instruction set.";

  m.def(
      "isa", [] { return std::string(statepool::isa_name(statepool::active_isa())); },
      "Instruction set in use: generic, avx2, avx512 or amx. All give the same bits.");
  m.def(
      "best_isa", [] { return std::string(statepool::isa_name(statepool::best_isa())); },
      "Best instruction set of this machine.");
  m.def(
      "set_isa",
      [](const std::string& name) {
        if (!statepool::set_isa(name.c_str()))
          throw std::invalid_argument("isa: '" + name + "' is unknown or this machine lacks it");
      },
      nb::arg("name"), "Use another instruction set from now on. Raises ValueError if the machine lacks it.");
  m.def("set_threads", &statepool::set_threads, nb::arg("count"), nb::call_guard<nb::gil_scoped_release>(),
        "Threads that take part in a kernel, the caller included (1..256).");
  m.def("threads", &statepool::threads, "Threads that take part in a kernel.");

  bind_vector(m);
  bind_linear(m);
  bind_attention(m);
  bind_layer(m);
  bind_sample(m);
  bind_gradient(m);
  bind_moba(m);
  bind_blocks(m);
  bind_wave_buffer(m);
  bind_wave(m);
  bind_prefixes(m);
  bind_checksum(m);
}
