// The Python module of the store's core. Each part registers itself in one bind_ function beside its code.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_errors(nb::module_& m);
void bind_log(nb::module_& m);
void bind_view(nb::module_& m);
void bind_store(nb::module_& m);
void bind_transaction(nb::module_& m);
void bind_ablation(nb::module_& m);

NB_MODULE(_store, m) {
  m.doc() = "The store's core: log, heap, structures, commit. statepool.store is its face.";
  bind_errors(m);
  bind_log(m);
  bind_view(m);
  bind_store(m);
  bind_transaction(m);
  bind_ablation(m);
}
