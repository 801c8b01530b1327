// Which class a kind of structure is and which of its methods an operation calls, in one place.
#pragma once

#include <type_traits>

#include "../operation.h"
#include "hash_table.h"
#include "range.h"

namespace statepool::store {

inline const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::dict: return "dict";
    case Kind::sorted_dict: return "sorted_dict";
    case Kind::skip_list: return "skip_list";
    case Kind::bst: return "bst";
    case Kind::mv_bst: return "mv_bst";
    case Kind::mv_sorted_dict: return "mv_sorted_dict";
    case Kind::stack: return "stack";
    case Kind::queue: return "queue";
  }
  return "unknown";
}

template <class S>
constexpr bool is_hash = false;
template <class Mem>
constexpr bool is_hash<HashTable<Mem>> = true;
template <class S>
constexpr bool is_sorted = false;
template <class S>
constexpr bool is_map = is_hash<S> || is_sorted<S>;

template <class Mem, class Body>
auto with_structure(Mem& mem, Kind kind, Addr root, Body&& body) {
  switch (kind) {
    case Kind::dict: {
      HashTable<Mem> s(mem, root);
      return body(s);
    }
    default: throw StoreError(Fault::corrupt, "catalog: a structure of unknown kind");
  }
}

template <class Mem>
Addr create_structure(Mem& mem, Kind kind) {
  switch (kind) {
    case Kind::dict: return HashTable<Mem>::create(mem);
    default: throw StoreError(Fault::invalid, "kind: no such structure");
  }
}

// Before a statement that only compiles for some structures: the others raise StoreError instead.
#define STATEPOOL_ONLY(condition)                                                                          \
  if constexpr (!(condition)) throw StoreError(Fault::invalid, "structure: its kind has no such operation"); \
  else

template <class Mem>
uint64_t lsn_of(Mem& mem, Kind kind, Addr root, Bytes key) {
  return with_structure(mem, kind, root, [&](auto& s) -> uint64_t {
    STATEPOOL_ONLY(is_map<std::decay_t<decltype(s)>>) return s.lsn_of(key);
  });
}

template <class Mem>
Outcome apply_operation(Mem& mem, Kind kind, Addr root, const Operation& o) {
  return with_structure(mem, kind, root, [&](auto& s) -> Outcome {
    using S = std::decay_t<decltype(s)>;
    Outcome out;
    switch (o.verb) {
      case Verb::put:
        STATEPOOL_ONLY(is_map<S>) {
          out.number = s.put(o.a, o.b) ? 1 : 0;
          out.changed = true;
        }
        return out;
      case Verb::erase:
        STATEPOOL_ONLY(is_map<S>) { out.changed = s.erase(o.a); }
        return out;
      default: throw StoreError(Fault::corrupt, "log: an operation of unknown type");
    }
  });
}

}  // namespace statepool::store
