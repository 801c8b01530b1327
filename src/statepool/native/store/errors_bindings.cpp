#include <nanobind/nanobind.h>

#include "errors.h"

namespace nb = nanobind;
using statepool::store::Fault;
using statepool::store::StoreError;

namespace {

const char* class_of(Fault fault) {
  switch (fault) {
    case Fault::invalid: return "InvalidRequest";
    case Fault::missing: return "NotFound";
    case Fault::corrupt: return "StoreCorrupt";
    case Fault::format: return "StoreFormat";
    case Fault::locked: return "StoreLocked";
    case Fault::full: return "StoreFull";
    case Fault::read_only: return "StoreReadOnly";
    case Fault::unknown: return "OutcomeUnknown";
    case Fault::conflict: return "Conflict";
    case Fault::expired: return "SnapshotExpired";
    case Fault::fenced: return "Fenced";
  }
  return "StoreError";
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const StoreError& error) {
      const nb::object type = nb::module_::import_("statepool.core.errors").attr(class_of(error.fault));
      PyErr_SetObject(type.ptr(), type(error.what()).ptr());
    }
  });
}
