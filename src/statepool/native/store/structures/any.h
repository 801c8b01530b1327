// Which class a kind of structure is and which of its methods an operation calls, in one place.
#pragma once

#include <type_traits>

#include "../operation.h"
#include "b_plus_tree.h"
#include "bst.h"
#include "hash_table.h"
#include "mv_b_plus_tree.h"
#include "mv_bst.h"
#include "queue.h"
#include "range.h"
#include "skip_list.h"
#include "stack.h"

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
template <class Mem>
constexpr bool is_sorted<BPlusTree<Mem>> = true;
template <class Mem>
constexpr bool is_sorted<SkipList<Mem>> = true;
template <class Mem>
constexpr bool is_sorted<Bst<Mem>> = true;
template <class Mem>
constexpr bool is_sorted<MvBst<Mem>> = true;
template <class Mem>
constexpr bool is_sorted<MvBPlusTree<Mem>> = true;
template <class S>
constexpr bool has_versions = false;
template <class Mem>
constexpr bool has_versions<MvBst<Mem>> = true;
template <class Mem>
constexpr bool has_versions<MvBPlusTree<Mem>> = true;
template <class S>
constexpr bool is_stack = false;
template <class Mem>
constexpr bool is_stack<Stack<Mem>> = true;
template <class S>
constexpr bool is_queue = false;
template <class Mem>
constexpr bool is_queue<Queue<Mem>> = true;
template <class S>
constexpr bool is_map = is_hash<S> || is_sorted<S>;

template <class Mem, class Body>
auto with_structure(Mem& mem, Kind kind, Addr root, Body&& body) {
  const auto with = [&](auto structure) { return body(structure); };
  switch (kind) {
    case Kind::dict: return with(HashTable<Mem>(mem, root));
    case Kind::sorted_dict: return with(BPlusTree<Mem>(mem, root));
    case Kind::skip_list: return with(SkipList<Mem>(mem, root));
    case Kind::bst: return with(Bst<Mem>(mem, root));
    case Kind::mv_bst: return with(MvBst<Mem>(mem, root));
    case Kind::mv_sorted_dict: return with(MvBPlusTree<Mem>(mem, root));
    case Kind::stack: return with(Stack<Mem>(mem, root));
    case Kind::queue: return with(Queue<Mem>(mem, root));
  }
  throw StoreError(Fault::corrupt, "catalog: a structure of unknown kind");
}

template <class Mem>
Addr create_structure(Mem& mem, Kind kind) {
  switch (kind) {
    case Kind::dict: return HashTable<Mem>::create(mem);
    case Kind::sorted_dict: return BPlusTree<Mem>::create(mem);
    case Kind::skip_list: return SkipList<Mem>::create(mem);
    case Kind::bst: return Bst<Mem>::create(mem);
    case Kind::mv_bst: return MvBst<Mem>::create(mem);
    case Kind::mv_sorted_dict: return MvBPlusTree<Mem>::create(mem);
    case Kind::stack: return Stack<Mem>::create(mem);
    case Kind::queue: return Queue<Mem>::create(mem);
  }
  throw StoreError(Fault::invalid, "kind: no such structure");
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

inline uint64_t word_in(Bytes words, size_t index) {
  if (words.size() < 8 * (index + 1)) throw StoreError(Fault::invalid, "operation: an argument is too short");
  return load_as<uint64_t>(words.data() + 8 * index);
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
      case Verb::push:
        STATEPOOL_ONLY(is_stack<S>) {
          s.push(o.a);
          out.changed = true;
        }
        return out;
      case Verb::pop:
        STATEPOOL_ONLY(is_stack<S>) { out.changed = s.pop(out.value); }
        return out;
      case Verb::enqueue:
        STATEPOOL_ONLY(is_queue<S>) { out.changed = s.put(o.a, o.b, out.number); }
        return out;
      case Verb::take:
        STATEPOOL_ONLY(is_queue<S>) {
          Taken taken;
          out.changed = s.take(o.x, o.y, word_in(o.a, 0), taken);
          out.number = taken.sequence;
          out.token = taken.token;
          out.attempts = taken.attempts;
          out.value = std::move(taken.value);
        }
        return out;
      case Verb::acknowledge:
        STATEPOOL_ONLY(is_queue<S>) { out.changed = s.acknowledge(o.x, o.y); }
        return out;
      case Verb::give_back:
        STATEPOOL_ONLY(is_queue<S>) { out.changed = s.give_back(o.x, o.y); }
        return out;
      case Verb::extend:
        STATEPOOL_ONLY(is_queue<S>) { out.changed = s.extend(o.x, o.y, word_in(o.a, 0), word_in(o.a, 1)); }
        return out;
      case Verb::limit_attempts:
        STATEPOOL_ONLY(is_queue<S>) {
          s.limit_attempts(o.x);
          out.changed = true;
        }
        return out;
      case Verb::take_dead:
        STATEPOOL_ONLY(is_queue<S>) {
          Taken taken;
          out.changed = s.take_dead(o.x, taken);
          out.number = taken.sequence;
          out.attempts = taken.attempts;
          out.value = std::move(taken.value);
        }
        return out;
      default: throw StoreError(Fault::corrupt, "log: an operation of unknown type");
    }
  });
}

}  // namespace statepool::store
