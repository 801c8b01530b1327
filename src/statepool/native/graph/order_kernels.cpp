#include "order.h"

#include "../simd.h"

#if defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace statepool::STATEPOOL_NS {
namespace {

// entries[i] = min(entries[i], max(entries[i - 1], key)) for eight i: the insertion, wherever the key belongs. `before` is
// the eight before as they were; it becomes these. Whole blocks are read and written, so a store is forwarded to the next
// key's load.
#if defined(STATEPOOL_ISA_avx512) && !defined(STATEPOOL_SIMDE)
struct Block {
  __m512i v;
};
STATEPOOL_INLINE Block least() { return {_mm512_set1_epi64(INT64_MIN)}; }
STATEPOOL_INLINE Block read8(const int64_t* entries) { return {_mm512_loadu_si512(entries)}; }
STATEPOOL_INLINE void shift8(int64_t* entries, int64_t key, Block& before) {
  const __m512i here = _mm512_loadu_si512(entries), left = _mm512_alignr_epi64(here, before.v, 7);
  _mm512_storeu_si512(entries, _mm512_min_epi64(here, _mm512_max_epi64(left, _mm512_set1_epi64(key))));
  before.v = here;
}
STATEPOOL_INLINE uint32_t even8(const int64_t* entries) {
  return _mm512_testn_epi64_mask(_mm512_loadu_si512(entries), _mm512_set1_epi64(1));
}
#elif defined(STATEPOOL_ISA_avx2) || defined(STATEPOOL_ISA_avx512)
struct Block {
  __m256i v;  // its upper four
};
STATEPOOL_INLINE Block least() { return {_mm256_set1_epi64x(INT64_MIN)}; }
STATEPOOL_INLINE Block read8(const int64_t* entries) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(entries + 4))};
}
STATEPOOL_INLINE void shift8(int64_t* entries, int64_t key, Block& before) {
  const __m256i k = _mm256_set1_epi64x(key);
  for (int i = 0; i < 8; i += 4) {
    const __m256i here = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(entries + i));
    const __m256i left = _mm256_alignr_epi8(here, _mm256_permute2x128_si256(before.v, here, 0x21), 8);
    const __m256i most = _mm256_blendv_epi8(left, k, _mm256_cmpgt_epi64(k, left));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(entries + i), _mm256_blendv_epi8(here, most, _mm256_cmpgt_epi64(here, most)));
    before.v = here;
  }
}
STATEPOOL_INLINE uint32_t even8(const int64_t* entries) {
  uint32_t odd = 0;
  for (int i = 0; i < 8; i += 4) {
    const __m256i moved = _mm256_slli_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(entries + i)), 63);
    odd |= static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(moved))) << i;
  }
  return ~odd & 255u;
}
#else
struct Block {
  int64_t v;  // its last
};
STATEPOOL_INLINE Block least() { return {INT64_MIN}; }
STATEPOOL_INLINE Block read8(const int64_t* entries) { return {entries[7]}; }
STATEPOOL_INLINE void shift8(int64_t* entries, int64_t key, Block& before) {
#if defined(__ARM_NEON) && defined(__aarch64__)
  const int64x2_t k = vdupq_n_s64(key);
  int64x2_t last = vdupq_n_s64(before.v);
  for (int i = 0; i < 8; i += 2) {
    const int64x2_t here = vld1q_s64(entries + i), left = vextq_s64(last, here, 1);
    const int64x2_t most = vbslq_s64(vcgtq_s64(k, left), k, left);
    vst1q_s64(entries + i, vbslq_s64(vcgtq_s64(here, most), most, here));
    last = here;
  }
  before.v = vgetq_lane_s64(last, 1);
#else
  for (int i = 0; i < 8; ++i) {
    const int64_t here = entries[i], most = before.v > key ? before.v : key;
    entries[i] = here < most ? here : most;
    before.v = here;
  }
#endif
}
STATEPOOL_INLINE uint32_t even8(const int64_t* entries) {
  uint32_t even = 0;
  for (int i = 0; i < 8; ++i) even |= static_cast<uint32_t>(~entries[i] & 1) << i;
  return even;
}
#endif

int insert(int64_t* entries, int last, const int64_t* keys, int count) {
  constexpr int kStretch = 64;
  const int end = last / 8 * 8 + 8;
  int inserted = 0;
  for (int k = 0; k < count; ++k) {
    const int64_t key = keys[k];
    if (key >= entries[last]) continue;
    ++inserted;
    int low = 0;
    while (low + kStretch < end && entries[low + kStretch - 1] < key) low += kStretch;  // nothing changes before its place
    Block before = low == 0 ? least() : read8(entries + low - 8);
    for (int i = low; i < end; i += 8) shift8(entries + i, key, before);
  }
  return inserted;
}

int first_even(const int64_t* entries, int from, int count) {
  for (int i = from / 8 * 8; i < count; i += 8)
    if (const uint32_t even = even8(entries + i)) {
      const int found = i + __builtin_ctz(even);
      return found < count ? found : count;
    }
  return count;
}

}  // namespace

extern const OrderKernels order_kernels;
const OrderKernels order_kernels = {&insert, &first_even};

}  // namespace statepool::STATEPOOL_NS
