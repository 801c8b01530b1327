// Where the log's last durable frame lies. The heap in shared memory keeps it, so that whoever comes after a killed process
// goes on from there instead of reading the whole log to find its end. A hint: the frame itself has to confirm it.
#pragma once

#include "crc32c.h"

namespace statepool::store {

struct LogTail {
  uint64_t segment = 0, at = 0;  // its file and first byte; segment 0: there is none
  uint64_t first_lsn = 0;        // of the frame
  uint64_t bytes = 0;            // of the frames between the last checkpoint and this one
  uint32_t prev_crc = 0;         // of the frame before it
  uint32_t crc = 0;              // of these fields: the one being written when the process died is wrong

  uint32_t sum() const { return crc32c(this, offsetof(LogTail, crc)); }
  bool valid() const { return segment != 0 && crc == sum(); }
};
static_assert(sizeof(LogTail) == 40);

}  // namespace statepool::store
