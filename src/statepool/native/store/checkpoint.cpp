#include "checkpoint.h"

#include <algorithm>
#include <cstdlib>

#include "crc32c.h"
#include "persist_point.h"

namespace statepool::store {
namespace {

constexpr uint32_t kMagic = 0x4b435053;  // "SPCK"
constexpr uint32_t kVersion = 1;
constexpr uint64_t kPerChunk = 16;

// Each chunk is a sector that says which blocks follow, then the blocks. The first sector of the file is a Head.
struct Head {
  uint32_t magic, version;
  uint64_t lsn, capacity, blocks, reserved;
  uint32_t zero, crc;
};
struct ChunkHead {
  uint32_t magic, count;
  uint64_t blocks[kPerChunk];
  uint32_t data_crc, crc;
};

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};
using Aligned = std::unique_ptr<std::byte[], Free>;

Aligned aligned(size_t size) {
  auto* p = static_cast<std::byte*>(std::aligned_alloc(kSector, size));
  if (p == nullptr) throw StoreError(Fault::full, "checkpoint: out of memory");
  return Aligned(p);
}

template <class Header>
uint32_t crc_of(const Header& h) {
  return crc32c(reinterpret_cast<const std::byte*>(&h), offsetof(Header, crc));
}

// Of a block. A new heap is zeros already: pages of zeros stay untouched, so that they take no memory.
void copy_pages(const std::byte* from, std::byte* to, bool all) {
  static const std::byte zeros[kSector] = {};
  for (size_t at = 0; at < kBlock; at += kSector)
    if (all || std::memcmp(from + at, zeros, kSector) != 0) std::memcpy(to + at, from + at, kSector);
}

}  // namespace

Checkpoint::Checkpoint(Heap& heap) : heap_(heap), lsn_(heap.applied_lsn()), kept_(heap.header().blocks) {
  const HeapHeader& h = heap.header();
  const auto* bits = reinterpret_cast<const uint64_t*>(heap.base() + h.bitmap);
  for (uint64_t b = 0; b < h.blocks; ++b) {
    const bool used = (bits[b / 64] >> (b % 64) & 1) != 0;
    if (used) blocks_.push_back(b);
    kept_[b].store(used ? 0 : 1, std::memory_order_relaxed);
  }
  heap.set_preserver(this);
}

Checkpoint::~Checkpoint() { heap_.set_preserver(nullptr); }

void Checkpoint::before_write(uint64_t block) {
  if (kept_[block].load(std::memory_order_acquire) != 0) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (kept_[block].load(std::memory_order_relaxed) != 0) return;
  auto copy = std::make_unique<std::byte[]>(kBlock);
  std::memcpy(copy.get(), heap_.base() + block * kBlock, kBlock);
  copies_.emplace(block, std::move(copy));
  kept_[block].store(1, std::memory_order_release);
}

void Checkpoint::take(uint64_t block, std::byte* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto found = copies_.find(block); found != copies_.end()) {
    std::memcpy(out, found->second.get(), kBlock);
    copies_.erase(found);
    return;
  }
  std::memcpy(out, heap_.base() + block * kBlock, kBlock);
  kept_[block].store(1, std::memory_order_release);
}

void Checkpoint::write(Disk& disk, const std::string& name) {
  const uint64_t chunks = (blocks_.size() + kPerChunk - 1) / kPerChunk;
  const auto file = disk.create(name, kSector + chunks * kSector + blocks_.size() * kBlock);
  const Aligned buffer = aligned(kSector + kPerChunk * kBlock);
  uint64_t at = kSector;
  for (uint64_t first = 0; first < blocks_.size(); first += kPerChunk) {
    ChunkHead chunk{kMagic, static_cast<uint32_t>(std::min(kPerChunk, blocks_.size() - first)), {}, 0, 0};
    for (uint32_t i = 0; i < chunk.count; ++i) {
      chunk.blocks[i] = blocks_[first + i];
      take(chunk.blocks[i], buffer.get() + kSector + i * kBlock);
    }
    chunk.data_crc = crc32c(buffer.get() + kSector, chunk.count * kBlock);
    chunk.crc = crc_of(chunk);
    std::memset(buffer.get(), 0, kSector);
    std::memcpy(buffer.get(), &chunk, sizeof(chunk));
    const uint64_t size = kSector + chunk.count * kBlock;
    persist_point("checkpoint chunk");
    file->write_later(at, buffer.get(), size);
    at += size;
  }
  file->sync();
  persist_point("checkpoint head");
  // The head comes last: a file without one is no checkpoint.
  const Aligned sector = aligned(kSector);
  Head head{kMagic, kVersion, lsn_, heap_.capacity(), blocks_.size(), 0, 0, 0};
  head.crc = crc_of(head);
  std::memset(sector.get(), 0, kSector);
  std::memcpy(sector.get(), &head, sizeof(head));
  file->write(0, sector.get(), kSector);
}

uint64_t load_checkpoint(Disk& disk, const std::string& name, Heap& heap) {
  const auto file = disk.open(name);
  const auto corrupt = [&](uint64_t at) {
    return StoreError(Fault::corrupt, name + ": damaged at byte " + std::to_string(at) +
                                          "; restore the folder from a mirror or a copy");
  };
  Head head{};
  if (file->read(0, &head, sizeof(head)) != sizeof(head) || head.magic != kMagic || head.crc != crc_of(head))
    throw corrupt(0);
  if (head.version != kVersion)
    throw StoreError(Fault::format, name + ": format " + std::to_string(head.version) + ", this program reads 1");
  if (head.capacity != heap.capacity())
    throw StoreError(Fault::invalid, "capacity: the checkpoint has " + std::to_string(head.capacity) + " bytes of heap");
  const Aligned buffer = aligned(kPerChunk * kBlock);
  const uint64_t formatted = round_up(kSector + heap.header().blocks / 8 + 8, kBlock) / kBlock;  // header and bitmap
  uint64_t at = kSector;
  for (uint64_t done = 0; done < head.blocks;) {
    ChunkHead chunk{};
    if (file->read(at, &chunk, sizeof(chunk)) != sizeof(chunk) || chunk.magic != kMagic || chunk.crc != crc_of(chunk) ||
        chunk.count == 0 || chunk.count > kPerChunk)
      throw corrupt(at);
    const uint64_t size = chunk.count * kBlock;
    if (file->read(at + kSector, buffer.get(), size) != size || crc32c(buffer.get(), size) != chunk.data_crc)
      throw corrupt(at);
    for (uint32_t i = 0; i < chunk.count; ++i) {
      if (chunk.blocks[i] >= heap.capacity() / kBlock) throw corrupt(at);
      copy_pages(buffer.get() + i * kBlock, heap.base() + chunk.blocks[i] * kBlock, chunk.blocks[i] < formatted);
    }
    at += kSector + chunk.count * kBlock;
    done += chunk.count;
  }
  return head.lsn;
}

}  // namespace statepool::store
