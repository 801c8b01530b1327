// What can go wrong in the store, by kind; the bindings raise the Python class of the same name (core/errors.py).
#pragma once

#include <stdexcept>
#include <string>

namespace statepool::store {

enum class Fault {
  invalid,      // InvalidRequest: an argument is of the wrong form or out of range
  missing,      // NotFound: no such store or structure
  corrupt,      // StoreCorrupt: stored bytes contradict their checksum or their neighbours
  format,       // StoreFormat: written by a newer format, or no store at all
  locked,       // StoreLocked: another process has this folder open for writing
  full,         // StoreFull: disk, heap or memory is exhausted; nothing was changed
  read_only,    // StoreReadOnly: a write failed earlier, or the folder cannot be written
  unknown,      // OutcomeUnknown: a write was not confirmed; it may or may not survive
  conflict,     // Conflict: what a transaction had read was changed by another
  expired,      // SnapshotExpired: a pinned version outlived its lease
  fenced,       // Fenced: a newer epoch or lock owner exists
};

struct StoreError : std::runtime_error {
  StoreError(Fault fault, const std::string& message) : std::runtime_error(message), fault(fault) {}
  Fault fault;
};

}  // namespace statepool::store
