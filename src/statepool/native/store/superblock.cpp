#include "superblock.h"

#include <algorithm>

#include "crc32c.h"
#include "errors.h"
#include "persist_point.h"

namespace statepool::store {
namespace {

constexpr const char* kName = "meta";

uint32_t crc_of(const Superblock& block) { return crc32c(&block, offsetof(Superblock, crc)); }

void write_slot(File& file, Superblock& block) {
  Superblock next = block;
  ++next.generation;
  next.crc = crc_of(next);
  alignas(kSector) static thread_local char sector[kSector];
  std::memset(sector, 0, kSector);
  std::memcpy(sector, &next, sizeof(next));
  persist_point("superblock before");
  file.write(next.generation % 2 * kSector, sector, kSector);
  persist_point("superblock after");
  block.generation = next.generation;
  block.crc = next.crc;
}

// Making a store ends with its superblock. Without one there is an unfinished store, which holds nothing, or a store
// whose superblock is lost: that one must not be taken for an empty folder and overwritten.
void check_unmade(Disk& disk) {
  bool data = !disk.list("ckpt").empty();
  for (const std::string& name : disk.list("log")) {
    if (name.size() != 16) continue;
    char start[8] = {};
    disk.open("log/" + name)->read(kSector, start, sizeof(start));
    data = data || name != "0000000000000001" || std::any_of(start, start + 8, [](char c) { return c != 0; });
  }
  if (data) throw StoreError(Fault::corrupt, "meta: neither of its two slots is valid, but there is a log; restore the folder from a mirror or a copy");
}

}  // namespace

bool read_superblock(Disk& disk, Superblock& out) {
  const auto names = disk.list("");
  const bool present = std::find(names.begin(), names.end(), kName) != names.end();
  const auto file = present ? disk.open(kName) : nullptr;
  bool found = false;
  for (int slot = 0; slot < 2 && present; ++slot) {
    Superblock block;
    block.magic = 0;
    file->read(slot * kSector, &block, sizeof(block));
    if (block.magic != Superblock{}.magic || block.crc != crc_of(block)) continue;
    if (block.version != Superblock{}.version)
      throw StoreError(Fault::format, "meta: format " + std::to_string(block.version) + ", this program reads 1");
    if (found && block.generation < out.generation) continue;
    out = block;
    found = true;
  }
  if (!found) check_unmade(disk);
  return found;
}

void create_superblock(Disk& disk, Superblock& block) {
  const auto file = disk.create(kName, 2 * kSector);
  write_slot(*file, block);
}

void write_superblock(Disk& disk, Superblock& block) {
  const auto file = disk.open(kName);
  write_slot(*file, block);
}

}  // namespace statepool::store
