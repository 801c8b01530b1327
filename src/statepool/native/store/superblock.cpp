#include "superblock.h"

#include <algorithm>
#include <cstdio>
#include <memory>

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

StoreError newer_format(uint32_t version) {
  return {Fault::format, "meta: format " + std::to_string(version) + ", this program reads 1"};
}

// `read(offset, data, size)` of the file.
template <class Read>
bool choose(Read&& read, Superblock& out) {
  bool found = false;
  uint32_t newer = 0;
  for (int slot = 0; slot < 2; ++slot) {
    Superblock block;
    block.magic = 0;
    read(slot * kSector, &block, sizeof(block));
    if (block.magic != Superblock{}.magic) continue;
    const bool whole = block.crc == crc_of(block);
    if (block.version > Superblock{}.version) {
      newer = block.version;
      if (whole) throw newer_format(newer);  // even beside an older slot: a newer program has written here
    }
    if (block.version != Superblock{}.version || !whole) continue;
    if (found && block.generation < out.generation) continue;
    out = block;
    found = true;
  }
  if (!found && newer != 0) throw newer_format(newer);
  return found;
}

}  // namespace

bool read_superblock(Disk& disk, Superblock& out) {
  const auto names = disk.list("");
  if (std::find(names.begin(), names.end(), kName) != names.end()) {
    const auto file = disk.open(kName);
    if (choose([&](uint64_t at, void* data, size_t size) { file->read(at, data, size); }, out)) return true;
  }
  check_unmade(disk);
  return false;
}

bool peek_superblock(const std::string& path, Superblock& out) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) return false;
  const auto read = [&](uint64_t at, void* data, size_t size) {
    if (std::fseek(file.get(), static_cast<long>(at), SEEK_SET) == 0 && std::fread(data, 1, size, file.get()) != size)
      std::memset(data, 0, size);
  };
  return choose(read, out);
}

std::string region_name(const Superblock& super) {
  std::string name = "/statepool-";
  for (const uint8_t byte : super.uuid) {
    char hex[3];
    std::snprintf(hex, sizeof(hex), "%02x", byte);
    name += hex;
  }
  if (super.replica != 0) name += "-" + std::to_string(super.replica);
  return name;
}

void create_superblock(Disk& disk, Superblock& block) {
  const auto file = disk.create(kName, 2 * kSector);
  write_slot(*file, block);
}

void write_superblock(Disk& disk, Superblock& block) {
  const auto file = disk.open(kName);
  file->sync();  // a killed process may have left the slot that stays in a cache alone
  write_slot(*file, block);
}

}  // namespace statepool::store
