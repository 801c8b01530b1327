// LiveSegment for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace statepool::graph {

void bind_live(nanobind::module_& m);

}  // namespace statepool::graph
