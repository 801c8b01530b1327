// Linear layers: packed weights, quantised activation rows, and y = x W^T + bias in four weight modes.
//
// Numerics (the same bits for any number of rows, threads and instruction set):
//   int8  ws[n] = amax|W[n]|/127, Wq = rne(W/ws);  xs[m] = amax|x[m]|/127, xq = rne(x * (127/amax));
//         y = (float(sum xq Wq) * ws[n]) * xs[m], the sum exact in int32
//   int4  groups of 64 along k: s_g = bf16(w_max/-8), w_max the entry of largest magnitude, q = rne(w/s_g) + 8 in 0..15;
//         acc = fma(s_g, float(sum (q-8) xq), acc) for g ascending; y = acc * xs[m]
//   bf16, fp32  one float accumulator per output, fma over k ascending
// then + bias[n], then residual + y. A row that holds a NaN or infinity gives NaN in the quantised modes.
#pragma once

#include <cstdint>

#include "memory.h"

namespace statepool {

enum class WeightMode : int { int8, int4, bf16, fp32 };

// Activation rows as the int8 and int4 kernels read them. Keep one per thread or per layer: it only ever grows.
struct QuantRows {
  int64_t rows = 0;
  int64_t k = 0;             // columns, padded with zeros to a multiple of 64
  Buffer<int8_t> data;       // [rows][k]
  Buffer<float> scales;      // [rows]; 0 for a row of zeros, NaN for a row with a NaN or infinity
  Buffer<int32_t> sums;      // [rows], sum of a row's data
  Buffer<int32_t> group_sums;  // [rows][k/64]
  Buffer<int16_t> wide;      // [rows][k] widened, columns 4i..4i+3 stored as 0,2,1,3: what the AVX2 kernel multiplies

  // Sizes the arrays for `rows` rows of `columns` values; call before quantize_row.
  void resize(int64_t rows, int64_t columns);
};

// Quantises x[columns] into row `row`. Rows are independent: call it from any thread.
void quantize_row(const float* x, int64_t columns, QuantRows& out, int64_t row);
// Sizes `out` and quantises x[rows][columns] in parallel.
void quantize_rows(const float* x, int64_t rows, int64_t columns, QuantRows& out);

// Where a product goes: out[rows][stride], and a residual of the same shape to add (may be `out` itself).
struct Output {
  float* data;
  int64_t stride;
  const float* residual = nullptr;
};

class Linear {
 public:
  // Weights [n][k] row-major, as float or bf16 bits; bias [n] or null. Packs in parallel; the source is not kept.
  // Raises std::invalid_argument for empty or too large shapes and for NaN or infinite weights.
  Linear(const float* weight, int64_t n, int64_t k, WeightMode mode, const float* bias);
  Linear(const uint16_t* weight, int64_t n, int64_t k, WeightMode mode, const float* bias);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  WeightMode mode() const { return mode_; }
  // True if run() takes QuantRows, false if it takes floats.
  bool quantized() const { return mode_ == WeightMode::int8 || mode_ == WeightMode::int4; }
  int64_t nbytes() const;

  // int8 and int4 only; raises std::logic_error otherwise, std::invalid_argument if the rows have another k.
  // Of the outputs only columns first .. first + count (multiples of 16; -1: all), each at its place in a row of `out`.
  void run(const QuantRows& x, Output out, int64_t first = 0, int64_t count = -1) const;
  // Any mode, x [rows][k] contiguous: quantises first where needed.
  void run(const float* x, int64_t rows, Output out, int64_t first = 0, int64_t count = -1) const;
  // The weights as the kernels see them, [n][k].
  void dequantize(float* out) const;

 private:
  int64_t last_strip(int64_t first, int64_t count) const;
  template <class T>
  void pack(const T* weight, const float* bias);

  int64_t n_, k_;
  int64_t strips_ = 0;    // groups of 16 outputs: the unit of packing and of work
  int64_t padded_k_ = 0;  // k rounded up to 64 in the quantised modes
  WeightMode mode_;
  // One contiguous piece per strip:
  //   int8  [k/4][16][4] bytes, Wq + 128
  //   int4  per group of 64: 16 bf16 scales, then [8][16][4] bytes; byte j of block b holds column 8b+j low, 8b+4+j high
  //   bf16, fp32  [k][16]
  Buffer<uint8_t> packed_;
  int64_t strip_bytes_ = 0;
  Buffer<float> scales_;  // int8: ws, padded with zeros to a multiple of 16
  Buffer<float> bias_;    // padded likewise; empty if there is none
};

}  // namespace statepool
