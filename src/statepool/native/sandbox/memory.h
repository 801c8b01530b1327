// Memory that is filled when it is touched: userfaultfd, and the pages a process has changed.
#pragma once

#include <nanobind/nanobind.h>

namespace statepool::sandbox {

void bind_memory(nanobind::module_& m);

}  // namespace statepool::sandbox
