#include "memory.h"

namespace statepool::sandbox {

void bind_memory(nanobind::module_&) {}

}  // namespace statepool::sandbox
