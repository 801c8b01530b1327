// Arrays that cross from Python: C-contiguous numpy memory, checked once at the edge.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace statepool {

template <class T, int Dims>
using Array = nanobind::ndarray<T, nanobind::ndim<Dims>, nanobind::c_contig, nanobind::device::cpu>;

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class A>
int64_t extent(const A& array, size_t axis) {
  return static_cast<int64_t>(array.shape(axis));
}

// A KV pool [blocks][layers][2][kv_heads][16 * head_dim], bf16 (uint16) or float32.
using PoolArray = nanobind::ndarray<nanobind::ndim<5>, nanobind::c_contig, nanobind::device::cpu>;

struct KvPool {
  char* data;
  bool bf16;
  int64_t blocks, layers, kv_heads, page;  // page = 16 * head_dim elements

  explicit KvPool(const PoolArray& array)
      : data(static_cast<char*>(array.data())),
        bf16(array.dtype() == nanobind::dtype<uint16_t>()),
        blocks(static_cast<int64_t>(array.shape(0))),
        layers(static_cast<int64_t>(array.shape(1))),
        kv_heads(static_cast<int64_t>(array.shape(3))),
        page(static_cast<int64_t>(array.shape(4))) {
    require(bf16 || array.dtype() == nanobind::dtype<float>(), "pool: must be uint16 (bf16 bits) or float32");
    require(array.shape(2) == 2, "pool: axis 2 must have size 2 (keys, values)");
    require(page > 0 && page % 256 == 0, "pool: the last axis must be 16 * head_dim with head_dim a multiple of 16");
  }

  int64_t head_dim() const { return page / 16; }
  int64_t item() const { return bf16 ? 2 : 4; }
  int64_t block_stride() const { return layers * 2 * kv_heads * page; }  // in elements
  // Page of block 0; `value` 0 for keys, 1 for values.
  char* base(int64_t layer, int value, int64_t head) const {
    return data + (((layer * 2) + value) * kv_heads + head) * page * item();
  }
};

}  // namespace statepool
