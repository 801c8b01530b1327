// Moves whole blocks of the KV pool: a block is one contiguous region, so each move is one copy.
#include <cstring>

#include "arrays.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool {
namespace {

using Ids = Array<const int32_t, 1>;

size_t block_bytes(const KvPool& pool) { return static_cast<size_t>(pool.block_stride() * pool.item()); }

void check_ids(const Ids& ids, const KvPool& pool, const char* message) {
  for (size_t i = 0; i < ids.shape(0); ++i) require(ids.data()[i] >= 0 && ids.data()[i] < pool.blocks, message);
}

void check_same(const KvPool& pool, const KvPool& other, size_t count, const char* message) {
  require(other.bf16 == pool.bf16 && other.layers == pool.layers && other.kv_heads == pool.kv_heads &&
              other.page == pool.page && other.blocks == static_cast<int64_t>(count),
          message);
}

void copy_blocks(PoolArray array, Ids src, Ids dst) {
  const KvPool pool(array);
  require(src.shape(0) == dst.shape(0), "dst: must have as many items as src");
  check_ids(src, pool, "src: block number out of range");
  check_ids(dst, pool, "dst: block number out of range");
  const size_t bytes = block_bytes(pool);
  for (size_t i = 0; i < src.shape(0); ++i)
    std::memmove(pool.data + dst.data()[i] * bytes, pool.data + src.data()[i] * bytes, bytes);
}

void gather_blocks(PoolArray array, Ids ids, PoolArray out_array) {
  const KvPool pool(array), out(out_array);
  check_ids(ids, pool, "ids: block number out of range");
  check_same(pool, out, ids.shape(0), "out: must be len(ids) blocks of the pool's shape and type");
  const size_t bytes = block_bytes(pool);
  parallel_for(static_cast<int64_t>(ids.shape(0)), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(out.data + i * bytes, pool.data + ids.data()[i] * bytes, bytes);
  });
}

void scatter_blocks(PoolArray array, Ids ids, PoolArray src_array) {
  const KvPool pool(array), src(src_array);
  check_ids(ids, pool, "ids: block number out of range");
  check_same(pool, src, ids.shape(0), "src: must be len(ids) blocks of the pool's shape and type");
  const size_t bytes = block_bytes(pool);
  parallel_for(static_cast<int64_t>(ids.shape(0)), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(pool.data + ids.data()[i] * bytes, src.data + i * bytes, bytes);
  });
}

}  // namespace
}  // namespace statepool

void bind_kv(nb::module_& m) {
  using namespace statepool;
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def("copy_blocks", &copy_blocks, "pool"_a.noconvert(), "src"_a.noconvert(), "dst"_a.noconvert(), Release(),
        "pool[dst[i]] = pool[src[i]], in order of i; ids are int32.");
  m.def("gather_blocks", &gather_blocks, "pool"_a.noconvert(), "ids"_a.noconvert(), "out"_a.noconvert(), Release(),
        "out = pool[ids].");
  m.def("scatter_blocks", &scatter_blocks, "pool"_a.noconvert(), "ids"_a.noconvert(), "src"_a.noconvert(), Release(),
        "pool[ids] = src; ids must be distinct.");
}
