// The kernel tables behind Linear. Everything here works on ranges of strips (16 outputs each).
#pragma once

#include <cstdint>

#include "isa.h"

namespace statepool {

// One product, as plain pointers: the kernel files must not see classes with inline members.
struct GemmJob {
  const uint8_t* packed;      // strip 0
  int64_t strip_bytes;
  const float* weight_scales;  // int8 only, [strips * 16]
  const float* bias;           // [strips * 16] or null
  int64_t n, k;                // k padded to 64 in the quantised modes
  int64_t rows;
  const int8_t* x8;            // quantised modes: [rows][k]
  const int16_t* x16;          // the same widened, see QuantRows::wide
  const float* x_scales;       // [rows]
  const int32_t* x_sums;       // [rows]
  const int32_t* x_group_sums;  // [rows][k/64]
  const float* x;              // float modes: [rows][k]
  float* out;
  int64_t stride;              // of out and residual
  const float* residual;       // or null
  void* (*scratch)(int64_t bytes);  // this thread's scratch memory, 64-byte aligned
};

struct GemmKernel {
  void (*run)(const GemmJob& job, int64_t first_strip, int64_t last_strip);
};

struct PackKernels {
  // One activation row: x[columns] to data[k], k the padded width; returns the scale and writes the sums.
  float (*quantize_row)(const float* x, int64_t columns, int64_t k, int8_t* data, int16_t* wide, int32_t* sum,
                        int32_t* group_sums);
  // One strip of weights, rows[16][padded_k] with zeros where there are none; scratch holds 16 * padded_k bytes.
  // False if a weight is NaN or infinite.
  bool (*int8)(const float* rows, int64_t padded_k, uint8_t* packed, float* scales, int8_t* scratch);
  bool (*int4)(const float* rows, int64_t padded_k, uint8_t* packed, int8_t* scratch);
  // False if one of x[n] is NaN or infinite.
  bool (*all_finite)(const float* x, int64_t n);
};

}  // namespace statepool

STATEPOOL_KERNELS(PackKernels, pack_kernels)
STATEPOOL_KERNELS(GemmKernel, gemm_int8)
#if defined(STATEPOOL_AMX)
namespace statepool::amx { extern const GemmKernel gemm_int8; }
#endif
STATEPOOL_KERNELS(GemmKernel, gemm_int4)
STATEPOOL_KERNELS(GemmKernel, gemm_bf16)
STATEPOOL_KERNELS(GemmKernel, gemm_fp32)
