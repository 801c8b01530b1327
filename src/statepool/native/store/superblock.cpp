#include "superblock.h"

#include <algorithm>
#include <cstdio>
#include <memory>

#include "crc32c.h"
#include "errors.h"

namespace statepool::store {
namespace {

constexpr const char* kName = "meta";

uint32_t crc_of(const Superblock& block) { return crc32c(&block, offsetof(Superblock, crc)); }

void write_slot(File& file, Superblock& block) {
  ++block.generation;
  block.crc = crc_of(block);
  alignas(kSector) static thread_local char sector[kSector];
  std::memset(sector, 0, kSector);
  std::memcpy(sector, &block, sizeof(block));
  file.write(block.generation % 2 * kSector, sector, kSector);
}

// `read(offset, data, size)` of the file.
template <class Read>
bool choose(Read&& read, Superblock& out) {
  bool found = false, empty = true;
  uint32_t newer = 0;
  for (int slot = 0; slot < 2; ++slot) {
    Superblock block;
    block.magic = 0;
    read(slot * kSector, &block, sizeof(block));
    empty = empty && block.magic == 0;
    if (block.magic != Superblock{}.magic) continue;
    if (block.version > Superblock{}.version) newer = block.version;
    if (block.version != Superblock{}.version || block.crc != crc_of(block)) continue;
    if (found && block.generation < out.generation) continue;
    out = block;
    found = true;
  }
  if (found) return true;
  if (newer != 0)
    throw StoreError(Fault::format, "meta: format " + std::to_string(newer) + ", this program reads 1");
  if (empty) return false;  // power was cut before a store was made here
  throw StoreError(Fault::corrupt, "meta: neither of its two slots is valid; restore the folder from a mirror or a copy");
}

}  // namespace

bool read_superblock(Disk& disk, Superblock& out) {
  const auto names = disk.list("");
  if (std::find(names.begin(), names.end(), kName) == names.end()) return false;
  const auto file = disk.open(kName);
  return choose([&](uint64_t at, void* data, size_t size) { file->read(at, data, size); }, out);
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
  write_slot(*file, block);
}

}  // namespace statepool::store
