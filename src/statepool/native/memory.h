// Aligned memory for weights and activations.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace statepool {

// A growing array aligned to a cache line, to a huge page when it is large. Contents are lost when it grows.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  // Room for `count` items; new memory is not initialised. Raises std::bad_alloc.
  void reserve(size_t count) {
    if (count <= capacity_) return;
    constexpr size_t kHuge = size_t{1} << 21;
    const size_t bytes = count * sizeof(T);
    const size_t alignment = bytes >= 2 * kHuge ? kHuge : 64;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == kHuge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    std::free(data_);
    data_ = static_cast<T*>(memory);
    capacity_ = count;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t bytes() const { return capacity_ * sizeof(T); }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
  }

  T* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace statepool
