#include "crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace statepool::store {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ kPolynomial : crc >> 1;
    table[i] = crc;
  }
  return table;
}
constexpr auto kTable = make_table();

#if defined(__x86_64__)

// The CRC of a part followed by kPart zero bytes, as four table lookups: crc(a b) is that of a shifted, xor that of b.
constexpr size_t kPart = 1024;

using Shift = std::array<std::array<uint32_t, 256>, 4>;

Shift make_shift() {
  Shift shift{};
  for (int byte = 0; byte < 4; ++byte)
    for (uint32_t v = 0; v < 256; ++v) {
      uint32_t crc = v << (8 * byte);
      for (size_t i = 0; i < kPart; ++i) crc = kTable[crc & 255] ^ crc >> 8;
      shift[static_cast<size_t>(byte)][v] = crc;
    }
  return shift;
}

uint32_t shifted(const Shift& s, uint32_t crc) {
  return s[0][crc & 255] ^ s[1][crc >> 8 & 255] ^ s[2][crc >> 16 & 255] ^ s[3][crc >> 24];
}

// The instruction has a latency of three cycles, so three independent parts run at once.
__attribute__((target("sse4.2"))) uint32_t crc_sse(const uint8_t* p, size_t n, uint32_t before) {
  static const Shift shift = make_shift();
  uint64_t crc = ~before;
  while (n >= 3 * kPart) {
    uint64_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < kPart; i += 8) {
      uint64_t x, y, z;
      std::memcpy(&x, p + i, 8);
      std::memcpy(&y, p + kPart + i, 8);
      std::memcpy(&z, p + 2 * kPart + i, 8);
      a = _mm_crc32_u64(a, x);
      b = _mm_crc32_u64(b, y);
      c = _mm_crc32_u64(c, z);
    }
    crc = shifted(shift, shifted(shift, static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b)) ^ static_cast<uint32_t>(c);
    p += 3 * kPart;
    n -= 3 * kPart;
  }
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t x;
    std::memcpy(&x, p, 8);
    crc = _mm_crc32_u64(crc, x);
  }
  for (; n > 0; --n) crc = _mm_crc32_u8(static_cast<uint32_t>(crc), *p++);
  return ~static_cast<uint32_t>(crc);
}

#elif defined(__ARM_FEATURE_CRC32)

uint32_t crc_arm(const uint8_t* p, size_t n, uint32_t before) {
  uint32_t crc = ~before;
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t x;
    std::memcpy(&x, p, 8);
    crc = __crc32cd(crc, x);
  }
  for (; n > 0; --n) crc = __crc32cb(crc, *p++);
  return ~crc;
}

#endif

}  // namespace

uint32_t crc32c_table(const void* data, size_t n, uint32_t before) {
  const auto* p = static_cast<const uint8_t*>(data);
  uint32_t crc = ~before;
  for (; n > 0; --n) crc = kTable[(crc ^ *p++) & 255] ^ crc >> 8;
  return ~crc;
}

uint32_t crc32c(const void* data, size_t n, uint32_t before) {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("sse4.2");
  if (has) return crc_sse(static_cast<const uint8_t*>(data), n, before);
#elif defined(__ARM_FEATURE_CRC32)
  return crc_arm(static_cast<const uint8_t*>(data), n, before);
#endif
  return crc32c_table(data, n, before);
}

}  // namespace statepool::store
