// Memory of one table that grows without moving: address space for all of it, pages only for what is touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <utility>

namespace statepool::graph {

// Zero-filled, aligned to a huge page. Readers keep their pointers while a writer appends.
class Region {
 public:
  Region() = default;
  explicit Region(size_t bytes) {
    if (bytes == 0) return;
    constexpr size_t kHuge = size_t{1} << 21;
    mapped_ = bytes + kHuge;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
    flags |= MAP_NORESERVE;
#endif
    void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
      mapped_ = 0;
      throw std::bad_alloc();
    }
    raw_ = static_cast<char*>(memory);
    const size_t offset = (kHuge - reinterpret_cast<size_t>(raw_) % kHuge) % kHuge;
    data_ = raw_ + offset;
#if defined(MADV_HUGEPAGE)
    madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  }
  // Somebody else's memory, for reading.
  static Region view(const void* data) {
    Region region;
    region.data_ = const_cast<char*>(static_cast<const char*>(data));
    return region;
  }
  Region(Region&& other) noexcept { swap(other); }
  Region& operator=(Region&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Region() {
    if (raw_ != nullptr) munmap(raw_, mapped_);
  }

  char* data() { return data_; }
  const char* data() const { return data_; }

 private:
  void swap(Region& other) noexcept {
    std::swap(raw_, other.raw_);
    std::swap(data_, other.data_);
    std::swap(mapped_, other.mapped_);
  }

  char* raw_ = nullptr;
  char* data_ = nullptr;
  size_t mapped_ = 0;
};

}  // namespace statepool::graph
