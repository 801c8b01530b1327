// One operation in the staging ring and in the log. Layout: docs/store-format.md.
#pragma once

#include "bytes.h"

namespace statepool::store {

struct RecordHeader {
  uint32_t length;  // of the body
  uint16_t type, flags;
  uint32_t structure, client;
  uint64_t client_seq;
  uint32_t lock_epoch;
  uint32_t lsn_low;  // of its lsn: a ring whose owner was killed says by itself which of its records the log has
};
static_assert(sizeof(RecordHeader) == 32);

// The lsn with these low bits that is nearest to another one.
inline uint64_t lsn_near(uint32_t low, uint64_t other) {
  return other + static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(low - static_cast<uint32_t>(other))));
}

constexpr uint16_t kTransactionBegin = 1, kTransactionEnd = 2;
constexpr uint64_t kMaxBody = 17 << 20;

// Bytes of the record that begins at `at`, header and padding too; 0 if it does not fit into the `rest` that is left.
inline uint64_t record_size(const void* at, uint64_t rest) {
  if (rest < sizeof(RecordHeader)) return 0;
  const uint64_t length = load_as<RecordHeader>(at).length;
  const uint64_t size = sizeof(RecordHeader) + round_up(length, 8);
  return length <= kMaxBody && size <= rest ? size : 0;
}

}  // namespace statepool::store
