#include "checksum.h"

#include <cstring>

#if defined(STATEPOOL_ISA_avx512) || defined(STATEPOOL_ISA_avx2)
#include <immintrin.h>
#define STATEPOOL_CHECKSUM_AVX2
#endif

namespace statepool::STATEPOOL_NS {
namespace {

constexpr uint32_t kPrime32_1 = 0x9E3779B1u;
constexpr int64_t kStripes = kSegment / kStripe, kScramble = 192 - kStripe;

#if defined(STATEPOOL_CHECKSUM_AVX2)

struct Lanes {
  __m256i low, high;
};

inline __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

inline Lanes load_lanes(const uint64_t* lanes) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(lanes);
  return {load(p), load(p + 32)};
}

inline void store_lanes(uint64_t* lanes, Lanes acc) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), acc.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes + 4), acc.high);
}

inline __m256i mixed(__m256i acc, __m256i data, const uint8_t* key) {
  const __m256i keyed = _mm256_xor_si256(data, load(key));
  const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
  return _mm256_add_epi64(product, _mm256_add_epi64(acc, _mm256_shuffle_epi32(data, 0x4E)));
}

inline __m256i scrambled(__m256i acc, const uint8_t* key) {
  const __m256i keyed = _mm256_xor_si256(_mm256_xor_si256(acc, _mm256_srli_epi64(acc, 47)), load(key));
  const __m256i prime = _mm256_set1_epi32(static_cast<int>(kPrime32_1));
  const __m256i low = _mm256_mul_epu32(keyed, prime);
  const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(keyed, 32), prime);
  return _mm256_add_epi64(low, _mm256_slli_epi64(high, 32));
}

enum class Copy { none, plain, past };

template <Copy copy>
inline void run(Lanes& acc, const uint8_t* source, uint8_t* target, int64_t count) {
  for (int64_t segment = 0; segment < count; ++segment) {
    for (int64_t i = 0; i < kStripes; ++i) {
      const int64_t at = segment * kSegment + i * kStripe;
      const __m256i low = load(source + at), high = load(source + at + 32);
      if (copy != Copy::none) {
        __m256i* out = reinterpret_cast<__m256i*>(target + at);
        if (copy == Copy::past) {
          _mm256_stream_si256(out, low);
          _mm256_stream_si256(out + 1, high);
        } else {
          _mm256_storeu_si256(out, low);
          _mm256_storeu_si256(out + 1, high);
        }
      }
      acc.low = mixed(acc.low, low, kSecret + 8 * i);
      acc.high = mixed(acc.high, high, kSecret + 8 * i + 32);
    }
    acc.low = scrambled(acc.low, kSecret + kScramble);
    acc.high = scrambled(acc.high, kSecret + kScramble + 32);
  }
}

void segments(uint64_t* lanes, const uint8_t* source, uint8_t* target, int64_t count, bool past) {
  Lanes acc = load_lanes(lanes);
  if (target == nullptr) {
    run<Copy::none>(acc, source, target, count);
  } else if (past) {
    run<Copy::past>(acc, source, target, count);
    _mm_sfence();
  } else {
    run<Copy::plain>(acc, source, target, count);
  }
  store_lanes(lanes, acc);
}

void stripes(uint64_t* lanes, const uint8_t* source, int64_t count, int64_t key) {
  Lanes acc = load_lanes(lanes);
  for (int64_t i = 0; i < count; ++i) {
    acc.low = mixed(acc.low, load(source + i * kStripe), kSecret + key + 8 * i);
    acc.high = mixed(acc.high, load(source + i * kStripe + 32), kSecret + key + 8 * i + 32);
  }
  store_lanes(lanes, acc);
}

#else

void stripes(uint64_t* lanes, const uint8_t* source, int64_t count, int64_t key) {
  for (int64_t i = 0; i < count; ++i) {
    uint64_t data[8], keys[8];
    std::memcpy(data, source + i * kStripe, sizeof data);
    std::memcpy(keys, kSecret + key + 8 * i, sizeof keys);
    for (int lane = 0; lane < 8; ++lane) {
      const uint64_t keyed = data[lane] ^ keys[lane];
      lanes[lane] += data[lane ^ 1] + (keyed & 0xffffffffu) * (keyed >> 32);
    }
  }
}

void segments(uint64_t* lanes, const uint8_t* source, uint8_t* target, int64_t count, bool) {
  for (int64_t segment = 0; segment < count; ++segment) {
    const uint8_t* from = source + segment * kSegment;
    if (target != nullptr) {  // into the target first: what was mixed must be what is stored
      std::memcpy(target + segment * kSegment, from, static_cast<size_t>(kSegment));
      from = target + segment * kSegment;
    }
    stripes(lanes, from, kStripes, 0);
    for (int lane = 0; lane < 8; ++lane) {
      uint64_t key;
      std::memcpy(&key, kSecret + kScramble + 8 * lane, sizeof key);
      lanes[lane] = (lanes[lane] ^ (lanes[lane] >> 47) ^ key) * kPrime32_1;
    }
  }
}

#endif

}  // namespace

extern const ChecksumKernels checksum_kernels;
const ChecksumKernels checksum_kernels = {&segments, &stripes};

}  // namespace statepool::STATEPOOL_NS
