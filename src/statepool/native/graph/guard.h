// Checksums of a mapped file, looked at when a block is first read: opening costs nothing, damage is never silent.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>

#include "../store/crc32c.h"

namespace statepool::graph {

// A search met bytes that are not what was written; `Guard::bad` says where.
struct DamageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Guard {
 public:
  static constexpr size_t kBlock = size_t{1} << 16;

  // `sums` has one CRC32C per block of `data`; both must outlive this.
  Guard(const char* data, size_t bytes, const uint32_t* sums)
      : data_(data), bytes_(bytes), sums_(sums), good_(std::make_unique<std::atomic<bool>[]>((bytes + kBlock - 1) / kBlock)) {}

  // Whether the blocks under [p, p + n), which lies in the data, are as they were written. Any thread may ask.
  bool touch(const void* p, size_t n) { return touch(static_cast<size_t>(static_cast<const char*>(p) - data_), n); }
  bool touch(size_t from, size_t n) {
    bool all = true;
    if (n == 0) return true;
    for (size_t block = from / kBlock; block <= (from + n - 1) / kBlock; ++block)
      all &= good_[block].load(std::memory_order_relaxed) || check(block);
    return all;
  }

  // What `p` holds contradicts the rest although its block is as it was written.
  void accuse(const void* p) { bad_.store(static_cast<const char*>(p) - data_, std::memory_order_relaxed); }

  // Offset in the data of a block that was found damaged; -1 if there is none.
  int64_t bad() const { return bad_.load(std::memory_order_relaxed); }
  void raise() const {
    if (bad() >= 0) throw DamageError("the file of this index is damaged");
  }

 private:
  bool check(size_t block) {
    const size_t at = block * kBlock, n = at + kBlock <= bytes_ ? kBlock : bytes_ - at;
    if (store::crc32c(data_ + at, n) != sums_[block]) {
      bad_.store(static_cast<int64_t>(at), std::memory_order_relaxed);
      return false;
    }
    good_[block].store(true, std::memory_order_relaxed);
    return true;
  }

  const char* data_;
  size_t bytes_;
  const uint32_t* sums_;
  std::unique_ptr<std::atomic<bool>[]> good_;
  std::atomic<int64_t> bad_{-1};
};

}  // namespace statepool::graph
