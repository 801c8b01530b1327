// The shared mapping a heap lies in: named, so that other processes can read it and a restarted owner finds it again.
#pragma once

#include <memory>
#include <string>

#include "heap.h"

namespace statepool::store {

class Region {
 public:
  // Memory of this process only.
  static Region anonymous(uint64_t size);
  // Shared memory by that name, `size` bytes of zeros (pages come when first used). StoreError: full.
  static Region create(const std::string& name, uint64_t size);
  // Existing shared memory, whole; an empty Region if there is none by that name. Writable for one process at a time
  // (StoreError: locked).
  static Region open(const std::string& name, bool writable);
  static void remove(const std::string& name);

  Region() = default;
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;
  ~Region();

  // Takes the memory of a range now: writing to shared memory that the machine has no room for would kill the process.
  // False if there is no room.
  bool reserve(uint64_t offset, uint64_t size) const;

  std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  Region(std::byte* data, uint64_t size, int fd) : data_(data), size_(size), fd_(fd) {}
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
  int fd_ = -1;
};

}  // namespace statepool::store
