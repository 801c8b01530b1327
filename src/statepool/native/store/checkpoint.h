// Checkpoints: the heap as it was after one operation, written to a file while the writer goes on.
//
// Before the writer changes a block that the checkpoint has not written yet, it keeps a copy of it (copy on write). The
// file counts only once the superblock names it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "disk.h"
#include "heap.h"

namespace statepool::store {

class Checkpoint final : public Preserver {
 public:
  // Takes the present state; the caller holds the writer lock and no transaction is open.
  explicit Checkpoint(Heap& heap);
  ~Checkpoint() override;
  uint64_t lsn() const { return lsn_; }

  // Writes the file, durable when it returns.
  void write(Disk& disk, const std::string& name);
  void before_write(uint64_t block) override;

 private:
  void take(uint64_t block, std::byte* out);

  Heap& heap_;
  uint64_t lsn_;
  std::vector<uint64_t> blocks_;                   // in use, ascending
  std::vector<std::atomic<uint8_t>> kept_;         // by block: written, copied, or not in use then
  std::mutex mutex_;
  std::unordered_map<uint64_t, std::unique_ptr<std::byte[]>> copies_;
};

// Fills an empty heap of at least the same capacity. Returns the lsn. StoreError: corrupt, format.
uint64_t load_checkpoint(Disk& disk, const std::string& name, Heap& heap);

}  // namespace statepool::store
