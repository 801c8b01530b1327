#include "distance.h"

#include "../simd.h"

namespace statepool::STATEPOOL_NS {
namespace {

#include "half.inc"

constexpr int kAhead = 6;       // vectors in flight: enough to cover a miss to the last-level cache
constexpr int kMaxLines = 24;   // beyond that the hardware streams on its own

template <Dtype>
struct Element;

template <>
struct Element<Dtype::f32> {
  static constexpr int kBytes = 4;
  static STATEPOOL_INLINE F16 get(const char* row, int i) { return load(reinterpret_cast<const float*>(row) + i); }
};

template <>
struct Element<Dtype::bf16> {
  static constexpr int kBytes = 2;
  static STATEPOOL_INLINE F16 get(const char* row, int i) { return load_bf16(reinterpret_cast<const uint16_t*>(row) + i); }
};

STATEPOOL_INLINE F16 load_bytes(const int8_t* p) {
#if defined(STATEPOOL_ISA_avx512)
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
#elif defined(STATEPOOL_ISA_avx2)
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
#else
  F16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(p[i]);
  return r;
#endif
}

template <>
struct Element<Dtype::f16> {
  static constexpr int kBytes = 2;
  static STATEPOOL_INLINE F16 get(const char* row, int i) { return load_half(reinterpret_cast<const uint16_t*>(row) + i); }
};

template <>
struct Element<Dtype::i8> {
  static constexpr int kBytes = 1;
  static STATEPOOL_INLINE F16 get(const char* row, int i) { return load_bytes(reinterpret_cast<const int8_t*>(row) + i); }
};

STATEPOOL_INLINE float scale_of(const char* row, int dims) {
  float scale;
  std::memcpy(&scale, row + dims, 4);
  return scale;
}

template <Dtype T>
STATEPOOL_INLINE float squared_row(const float* q, const char* row, int dims) {
  F16 sums[4] = {zero(), zero(), zero(), zero()};
  const F16 scale = set1(T == Dtype::i8 ? scale_of(row, dims) : 1.0f);
  const auto step = [&](int i, F16& sum) {
    F16 x = Element<T>::get(row, i);
    if constexpr (T == Dtype::i8) x = mul(x, scale);
    const F16 gap = sub(load(q + i), x);
    sum = fma(gap, gap, sum);
  };
  int i = 0;
  for (; i + 64 <= dims; i += 64)
    for (int lane = 0; lane < 4; ++lane) step(i + 16 * lane, sums[lane]);
  for (int lane = 0; i < dims; i += 16, ++lane) step(i, sums[lane]);
  return tree_sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

template <Dtype T>
STATEPOOL_INLINE float dot_row(const float* q, const char* row, int dims) {
  F16 sums[4] = {zero(), zero(), zero(), zero()};
  int i = 0;
  for (; i + 64 <= dims; i += 64)
    for (int lane = 0; lane < 4; ++lane)
      sums[lane] = fma(load(q + i + 16 * lane), Element<T>::get(row, i + 16 * lane), sums[lane]);
  for (int lane = 0; i < dims; i += 16, ++lane) sums[lane] = fma(load(q + i), Element<T>::get(row, i), sums[lane]);
  const float sum = tree_sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  return T == Dtype::i8 ? sum * scale_of(row, dims) : sum;
}

STATEPOOL_INLINE void fetch(const char* row, int lines) {
  for (int line = 0; line < lines; ++line) __builtin_prefetch(row + 64 * line);
}

template <Dtype T, bool kSquared>
void many(const float* q, const char* base, size_t stride, const uint32_t* ids, int count, int dims, float* out) {
  const int bytes = dims * Element<T>::kBytes + (T == Dtype::i8 ? 4 : 0);
  const int lines = bytes > 64 * kMaxLines ? kMaxLines : (bytes + 63) / 64;
  for (int i = 0; i < count && i < kAhead; ++i) fetch(base + ids[i] * stride, lines);
  for (int i = 0; i < count; ++i) {
    if (i + kAhead < count) fetch(base + ids[i + kAhead] * stride, lines);
    const char* row = base + ids[i] * stride;
    out[i] = kSquared ? squared_row<T>(q, row, dims) : dot_row<T>(q, row, dims);
  }
}

template <Dtype T>
void decode(const char* row, float* out, int dims) {
  const F16 scale = set1(T == Dtype::i8 ? scale_of(row, dims) : 1.0f);
  for (int i = 0; i < dims; i += 16) {
    const F16 x = Element<T>::get(row, i);
    store(out + i, T == Dtype::i8 ? mul(x, scale) : x);
  }
}

void encode_f32(const float* x, char* row, int dims) { std::memcpy(row, x, 4 * static_cast<size_t>(dims)); }

void encode_bf16(const float* x, char* row, int dims) {
  for (int i = 0; i < dims; i += 16) store_bf16(reinterpret_cast<uint16_t*>(row) + i, load(x + i));
}

uint32_t raw(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// To nearest even by adding a float whose last mantissa bit is the half's; the same on every instruction set.
uint16_t half_of_float(float x) {
  const uint32_t sign = (raw(x) >> 16) & 0x8000u, magnitude = raw(x) & 0x7fffffffu;
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and above: infinite
  if (magnitude < 0x38800000u) {                                               // subnormal half
    float value;
    std::memcpy(&value, &magnitude, 4);
    return static_cast<uint16_t>(sign | (raw(value + 0.5f) & 0x3ffu) | ((raw(value + 0.5f) - 0x3f000000u) & 0x400u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

void encode_f16(const float* x, char* row, int dims) {
  for (int i = 0; i < dims; ++i) {
    const uint16_t half = half_of_float(x[i]);
    std::memcpy(row + 2 * i, &half, 2);
  }
}

void encode_i8(const float* x, char* row, int dims) {
  float most = 0.0f;
  for (int i = 0; i < dims; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
  const float scale = most / 127.0f, inverse = most > 0.0f ? 127.0f / most : 0.0f;
  for (int i = 0; i < dims; ++i) row[i] = static_cast<char>(static_cast<int8_t>(std::nearbyint(x[i] * inverse)));
  std::memcpy(row + dims, &scale, 4);
}

}  // namespace

extern const DistanceKernels distance_kernels;
const DistanceKernels distance_kernels = {
    {&many<Dtype::f32, true>, &many<Dtype::f16, true>, &many<Dtype::bf16, true>, &many<Dtype::i8, true>},
    {&many<Dtype::f32, false>, &many<Dtype::f16, false>, &many<Dtype::bf16, false>, &many<Dtype::i8, false>},
    {&decode<Dtype::f32>, &decode<Dtype::f16>, &decode<Dtype::bf16>, &decode<Dtype::i8>},
    {&encode_f32, &encode_f16, &encode_bf16, &encode_i8},
};

}  // namespace statepool::STATEPOOL_NS
