// The store's first word: two slots of a sector, written in turn; the valid one of the higher generation counts.
#pragma once

#include "disk.h"

namespace statepool::store {

struct Superblock {
  uint32_t magic = 0x4d535053, version = 1;  // "SPSM"
  uint8_t uuid[16] = {};
  uint64_t generation = 0, epoch = 0;
  uint64_t checkpoint_lsn = 0, checkpoint_id = 0;  // 0: none
  uint64_t first_segment = 1, segment_size = 0, capacity = 0;
  uint64_t heap_nonce = 0;
  uint64_t clean = 0;  // closed in good order: the last operation's lsn + 1; otherwise 0
  uint32_t replica = 0;    // names a copy of the store on another machine or, for tests, on this one; 0: none
  uint32_t crc = 0;
};

// False if there is no store, or one whose making was cut off. StoreError: corrupt (no valid slot), format (a newer one).
bool read_superblock(Disk& disk, Superblock& out);
bool peek_superblock(const std::string& path, Superblock& out);  // the same, of a file that another process writes
std::string region_name(const Superblock& super);                // of the shared memory its heap lies in
void create_superblock(Disk& disk, Superblock& block);
// Into the other slot, with the next generation. After a failed write the same slot is written again: the other one is
// then the only good one.
void write_superblock(Disk& disk, Superblock& block);

}  // namespace statepool::store
