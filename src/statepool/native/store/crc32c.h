// CRC-32C (Castagnoli), as in iSCSI and ext4.
#pragma once

#include <cstddef>
#include <cstdint>

namespace statepool::store {

// Of n bytes; `before` is the value over the bytes that precede them.
uint32_t crc32c(const void* data, size_t n, uint32_t before = 0);
uint32_t crc32c_table(const void* data, size_t n, uint32_t before = 0);  // the same, without CPU instructions

}  // namespace statepool::store
