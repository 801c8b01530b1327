// A segment: rows of vectors and the graph over them, in memory that grows without moving.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "guard.h"
#include "region.h"
#include "space.h"

namespace statepool::graph {

constexpr uint32_t kNone = 0xffffffffu;  // fills the end of a list of neighbours

class Segment {
 public:
  Segment(const Space& space, int degree, size_t capacity)
      : space(space),
        degree(degree),
        capacity_(capacity),
        vectors_(capacity * space.stride),
        links_(capacity * static_cast<size_t>(degree) * sizeof(uint32_t)) {}

  // Rows and links that lie in a mapped file; `guard` (or null) checks what is read. It can only be read.
  Segment(const Space& space, int degree, size_t count, const void* rows, const void* links, Guard* guard)
      : space(space), degree(degree), guard(guard), capacity_(count), size_(count), vectors_(Region::view(rows)),
        links_(Region::view(links)) {}

  Space space;
  const int degree;               // most neighbours of a node; a multiple of 16
  std::vector<uint32_t> entries;  // where searches start, nearest to the centre first
  Guard* const guard = nullptr;

  size_t size() const { return size_.load(std::memory_order_acquire); }
  size_t capacity() const { return capacity_; }
  const char* rows() const { return vectors_.data(); }
  char* row(uint32_t node) { return vectors_.data() + node * space.stride; }
  const char* row(uint32_t node) const { return vectors_.data() + node * space.stride; }
  uint32_t* links(uint32_t node) {
    return reinterpret_cast<uint32_t*>(links_.data()) + static_cast<size_t>(node) * static_cast<size_t>(degree);
  }
  const uint32_t* links(uint32_t node) const { return const_cast<Segment*>(this)->links(node); }

  // Append `count` prepared rows of space.dims floats. They have no links and cannot be reached yet.
  void append(const float* rows, size_t count) {
    const size_t first = size();
    if (first + count > capacity_) throw std::length_error("the segment is full");
    for (size_t i = 0; i < count; ++i) {
      const uint32_t node = static_cast<uint32_t>(first + i);
      distance_kernels().encode[static_cast<int>(space.dtype)](rows + i * static_cast<size_t>(space.dims), row(node),
                                                               space.dims);
      for (int k = 0; k < degree; ++k) links(node)[k] = kNone;
    }
    size_.store(first + count, std::memory_order_release);
  }

  // Whether a row and a list may be read: always, but for a file that is damaged there.
  bool sound_row(uint32_t node) const { return guard == nullptr || guard->touch(row(node), space.stride); }
  bool sound_links(uint32_t node) const {
    const size_t bytes = static_cast<size_t>(degree) * sizeof(uint32_t);
    if (guard == nullptr) return true;
    if (!guard->touch(links(node), bytes)) return false;
    for (int k = 0; k < degree && links(node)[k] != kNone; ++k) {
      if (links(node)[k] < size()) continue;
      guard->accuse(links(node) + k);
      return false;
    }
    return true;
  }

  // The row as floats; `buffer` (space.dims) is used unless it is stored that way.
  const float* floats(uint32_t node, float* buffer) const {
    if (space.dtype == Dtype::f32) return reinterpret_cast<const float*>(row(node));
    distance_kernels().decode[static_cast<int>(space.dtype)](row(node), buffer, space.dims);
    return buffer;
  }
  // Squared Euclidean distances between rows: what the graph is built on, whatever the metric.
  void squared(const float* from, const uint32_t* ids, int count, float* out) const {
    distance_kernels().squared[static_cast<int>(space.dtype)](from, rows(), space.stride, ids, count, space.dims, out);
  }

 private:
  size_t capacity_;
  std::atomic<size_t> size_{0};
  Region vectors_, links_;
};

}  // namespace statepool::graph
