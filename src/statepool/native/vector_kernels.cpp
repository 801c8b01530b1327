#include "simd.h"
#include "vector.h"

namespace statepool::STATEPOOL_NS {
namespace {

void exp(const float* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, exp16(load(x + i)));
  if (i < n) {
    float tail[16] = {};
    std::memcpy(tail, x + i, static_cast<size_t>(n - i) * sizeof(float));
    store(tail, exp16(load(tail)));
    std::memcpy(out + i, tail, static_cast<size_t>(n - i) * sizeof(float));
  }
}

void to_bf16(const float* x, uint16_t* out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_bf16(out + i, load(x + i));
  if (i < n) {
    float tail[16] = {};
    uint16_t rounded[16];
    std::memcpy(tail, x + i, static_cast<size_t>(n - i) * sizeof(float));
    store_bf16(rounded, load(tail));
    std::memcpy(out + i, rounded, static_cast<size_t>(n - i) * sizeof(uint16_t));
  }
}

void from_bf16(const uint16_t* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, load_bf16(x + i));
  if (i < n) {
    uint16_t tail[16] = {};
    float wide[16];
    std::memcpy(tail, x + i, static_cast<size_t>(n - i) * sizeof(uint16_t));
    store(wide, load_bf16(tail));
    std::memcpy(out + i, wide, static_cast<size_t>(n - i) * sizeof(float));
  }
}

float sum(const float* x, int64_t n) {
  F16 lanes = zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) lanes = add(lanes, load(x + i));
  if (i < n) {
    float tail[16] = {};
    std::memcpy(tail, x + i, static_cast<size_t>(n - i) * sizeof(float));
    lanes = add(lanes, load(tail));
  }
  return tree_sum(lanes);
}

}  // namespace

extern const VectorKernels vector_kernels;
const VectorKernels vector_kernels = {&exp, &to_bf16, &from_bf16, &sum};

}  // namespace statepool::STATEPOOL_NS
