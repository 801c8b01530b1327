// One operation in the staging ring and in the log. Layout: docs/store-format.md.
#pragma once

#include "bytes.h"

namespace statepool::store {

struct RecordHeader {
  uint32_t length;  // of the body
  uint16_t type, flags;
  uint32_t structure, client;
  uint64_t client_seq;
  uint32_t lock_epoch, reserved;
};
static_assert(sizeof(RecordHeader) == 32);

constexpr uint16_t kTransactionBegin = 1, kTransactionEnd = 2;
constexpr uint64_t kMaxBody = 17 << 20;

}  // namespace statepool::store
