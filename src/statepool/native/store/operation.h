// Operations: what a caller asks, what a record in the log says, what is applied to the heap. One form for all three.
//
// Conditional operations (compare-and-set, increments, transactions) are decided before they are logged; the log holds
// their outcome as plain puts and erases, so that a replay cannot decide otherwise.
#pragma once

#include <string>
#include <vector>

#include "errors.h"
#include "record.h"

namespace statepool::store {

enum class Verb : uint16_t {
  create = 1,  // a = name, x = kind
  drop = 2,  // alone in its transaction
  put = 3,    // a = key, b = value
  erase = 4,  // a = key
  push = 5,   // a = value
  pop = 6,
  enqueue = 7,  // a = value, b = deduplication id or nothing
  take = 8,     // a = owner, a word; x = now in ms, y = lease in ms
  acknowledge = 9,  // x = sequence number, y = token
  give_back = 10,   // x, y likewise
  extend = 11,      // x, y likewise; a = now and lease in ms, a word each
  limit_attempts = 12,  // x = how often an item may be taken, 0: any number of times
  take_dead = 13,       // x = now in ms
};

enum class Kind : uint8_t { dict = 1, sorted_dict, skip_list, bst, mv_bst, mv_sorted_dict, stack, queue };

struct Operation {
  Verb verb;
  uint32_t structure;
  Bytes a, b;
  uint64_t x = 0, y = 0;
};

struct Outcome {
  bool changed = false;  // false: nothing to do (absent key, empty queue), and nothing was logged for it
  uint64_t number = 0;   // id of a structure, sequence number of an item
  uint64_t token = 0, attempts = 0;
  std::string value;
};

// The body of a record: u32 size of a, u32 size of b, x, y, then a and b, each filled up to a word.
struct BodyHeader {
  uint32_t a_size, b_size;
  uint64_t x, y;
};
static_assert(sizeof(BodyHeader) == 24);

// Bounds are checked: a record of another make raises StoreError corrupt.
inline Operation decode_operation(const RecordHeader& header, Bytes body) {
  if (body.size() < sizeof(BodyHeader)) throw StoreError(Fault::corrupt, "log: an operation is shorter than its header");
  const auto h = load_as<BodyHeader>(body.data());
  const uint64_t b_at = sizeof(BodyHeader) + round_up(h.a_size, 8);
  if (b_at + round_up(h.b_size, 8) != body.size())
    throw StoreError(Fault::corrupt, "log: the sizes within an operation do not add up");
  return {static_cast<Verb>(header.type), header.structure, body.substr(sizeof(BodyHeader), h.a_size),
          body.substr(b_at, h.b_size),    h.x,              h.y};
}

}  // namespace statepool::store
