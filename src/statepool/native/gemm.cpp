#include "gemm.h"

#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>

#include "gemm_kernels.h"
#include "pool.h"

namespace statepool {
namespace {

constexpr int64_t kMaxColumns = 65536;  // 255 * 127 * 65536 still fits int32

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

void* thread_scratch(int64_t bytes) {
  thread_local Buffer<uint8_t> scratch;
  scratch.reserve(static_cast<size_t>(bytes));
  return scratch.data();
}

void copy_row(const float* from, float* to, int64_t k) { std::memcpy(to, from, static_cast<size_t>(k) * sizeof(float)); }
void copy_row(const uint16_t* from, float* to, int64_t k) {
  for (int64_t i = 0; i < k; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(to + i, &bits, 4);
  }
}

// Rounded to nearest even; weights are finite here.
uint16_t to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float from_bf16(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

int64_t bytes_per_strip(WeightMode mode, int64_t padded_k) {
  switch (mode) {
    case WeightMode::int8: return padded_k * 16;
    case WeightMode::int4: return padded_k / 64 * (32 + 512);
    case WeightMode::bf16: return padded_k * 32;
    default: return padded_k * 64;
  }
}

}  // namespace

void QuantRows::resize(int64_t row_count, int64_t columns) {
  rows = row_count;
  k = round_up(columns, 64);
  const size_t m = static_cast<size_t>(rows), width = static_cast<size_t>(k);
  data.reserve(m * width);
  wide.reserve(m * width);
  scales.reserve(m);
  sums.reserve(m);
  group_sums.reserve(m * width / 64);
}

void quantize_row(const float* x, int64_t columns, QuantRows& out, int64_t row) {
  out.scales.data()[row] =
      pack_kernels().quantize_row(x, columns, out.k, out.data.data() + row * out.k, out.wide.data() + row * out.k,
                                  out.sums.data() + row, out.group_sums.data() + row * (out.k / 64));
}

void quantize_rows(const float* x, int64_t rows, int64_t columns, QuantRows& out) {
  out.resize(rows, columns);
  const int64_t grain = columns >= 16384 ? 1 : 16384 / (columns > 0 ? columns : 1);
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) quantize_row(x + row * columns, columns, out, row);
  });
}

Linear::Linear(const float* weight, int64_t n, int64_t k, WeightMode mode, const float* bias)
    : n_(n), k_(k), mode_(mode) {
  pack(weight, bias);
}

Linear::Linear(const uint16_t* weight, int64_t n, int64_t k, WeightMode mode, const float* bias)
    : n_(n), k_(k), mode_(mode) {
  pack(weight, bias);
}

template <class T>
void Linear::pack(const T* weight, const float* bias) {
  if (n_ < 1 || k_ < 1) throw std::invalid_argument("weight: must have at least one row and one column");
  if (k_ > kMaxColumns) throw std::invalid_argument("weight: more than 65536 columns would overflow the int32 sums");
  strips_ = round_up(n_, 16) / 16;
  padded_k_ = quantized() ? round_up(k_, 64) : k_;
  strip_bytes_ = bytes_per_strip(mode_, padded_k_);
  packed_.reserve(static_cast<size_t>(strips_ * strip_bytes_));
  if (mode_ == WeightMode::int8) scales_.reserve(static_cast<size_t>(strips_ * 16));
  if (bias) {
    bias_.reserve(static_cast<size_t>(strips_ * 16));
    std::memset(bias_.data(), 0, static_cast<size_t>(strips_ * 16) * sizeof(float));
    copy_row(bias, bias_.data(), n_);
  }
  std::atomic<int64_t> bad_strip{-1};
  parallel_for(strips_, 4, [&](int64_t begin, int64_t end) {
    const int64_t values = 16 * padded_k_;
    float* rows = static_cast<float*>(thread_scratch(values * static_cast<int64_t>(sizeof(float) + 1)));
    int8_t* bytes = reinterpret_cast<int8_t*>(rows + values);
    for (int64_t strip = begin; strip < end; ++strip) {
      for (int64_t r = 0; r < 16; ++r) {
        float* row = rows + r * padded_k_;
        const bool exists = strip * 16 + r < n_;
        if (exists) copy_row(weight + (strip * 16 + r) * k_, row, k_);
        for (int64_t i = exists ? k_ : 0; i < padded_k_; ++i) row[i] = 0.0f;
      }
      uint8_t* packed = packed_.data() + strip * strip_bytes_;
      bool finite = true;
      if (mode_ == WeightMode::int8) {
        finite = pack_kernels().int8(rows, padded_k_, packed, scales_.data() + strip * 16, bytes);
      } else if (mode_ == WeightMode::int4) {
        finite = pack_kernels().int4(rows, padded_k_, packed, bytes);
      } else {
        finite = pack_kernels().all_finite(rows, values);
        for (int64_t k = 0; k < padded_k_; ++k) {
          for (int64_t r = 0; r < 16; ++r) {
            const float value = rows[r * padded_k_ + k];
            if (mode_ == WeightMode::bf16) {
              reinterpret_cast<uint16_t*>(packed)[k * 16 + r] = to_bf16(value);
            } else {
              reinterpret_cast<float*>(packed)[k * 16 + r] = value;
            }
          }
        }
      }
      if (!finite) bad_strip.store(strip, std::memory_order_relaxed);
    }
  });
  if (bad_strip.load() >= 0) {
    const int64_t first = bad_strip.load() * 16;
    throw std::invalid_argument("weight: NaN or infinity in rows " + std::to_string(first) + ".." +
                                std::to_string((first + 16 < n_ ? first + 16 : n_) - 1));
  }
}

int64_t Linear::nbytes() const { return static_cast<int64_t>(packed_.bytes() + scales_.bytes() + bias_.bytes()); }

namespace {

// Several chunks per thread, so that a thread that loses its core for a moment does not hold up the others; whole fours
// of strips where there are many, which is what the widest tiles take; one chunk where waking a thread costs more.
int64_t strips_per_chunk(const GemmJob& job, int64_t strips) {
  constexpr int64_t kSmall = 1 << 17;  // multiply-adds: a few microseconds
  if (job.rows * strips * 16 * job.k < kSmall) return strips;
  const int64_t grain = strips / (threads() * 8);
  if (grain >= 4) return grain / 4 * 4;
  return strips >= threads() * 8 ? 2 : 1;
}

const GemmKernel& int8_kernel() {
#if defined(STATEPOOL_AMX)
  if (active_isa() == Isa::amx) return amx::gemm_int8;
#endif
  return gemm_int8();
}

void run_parallel(const GemmKernel& kernel, const GemmJob& job, int64_t first, int64_t last) {
  parallel_for(last - first, strips_per_chunk(job, last - first),
               [&](int64_t begin, int64_t end) { kernel.run(job, first + begin, first + end); });
}

}  // namespace

int64_t Linear::last_strip(int64_t first, int64_t count) const {
  if (count < 0 && first == 0) return strips_;
  if (first < 0 || first % 16 || count < 0 || count % 16 || first + count > n_)
    throw std::invalid_argument("columns: must be whole sixteens within the outputs");
  return (first + count) / 16;
}

void Linear::run(const QuantRows& x, Output out, int64_t first, int64_t count) const {
  if (!quantized()) throw std::logic_error("linear: this weight mode takes float rows");
  if (x.k != padded_k_) throw std::invalid_argument("x: quantised for another number of columns");
  if (x.rows == 0) return;
  GemmJob job{};
  job.packed = packed_.data();
  job.strip_bytes = strip_bytes_;
  job.weight_scales = scales_.data();
  job.bias = bias_.data();
  job.n = n_;
  job.k = padded_k_;
  job.rows = x.rows;
  job.x8 = x.data.data();
  job.x16 = x.wide.data();
  job.x_scales = x.scales.data();
  job.x_sums = x.sums.data();
  job.x_group_sums = x.group_sums.data();
  job.out = out.data;
  job.stride = out.stride;
  job.residual = out.residual;
  job.scratch = &thread_scratch;
  run_parallel(mode_ == WeightMode::int8 ? int8_kernel() : gemm_int4(), job, first / 16, last_strip(first, count));
}

void Linear::run(const float* x, int64_t rows, Output out, int64_t first, int64_t count) const {
  if (rows == 0) return;
  if (quantized()) {
    thread_local QuantRows quantized_rows;
    quantize_rows(x, rows, k_, quantized_rows);
    run(quantized_rows, out, first, count);
    return;
  }
  GemmJob job{};
  job.packed = packed_.data();
  job.strip_bytes = strip_bytes_;
  job.bias = bias_.data();
  job.n = n_;
  job.k = k_;
  job.rows = rows;
  job.x = x;
  job.out = out.data;
  job.stride = out.stride;
  job.residual = out.residual;
  job.scratch = &thread_scratch;
  run_parallel(mode_ == WeightMode::bf16 ? gemm_bf16() : gemm_fp32(), job, first / 16, last_strip(first, count));
}

void Linear::dequantize(float* out) const {
  parallel_for(strips_, 4, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin * 16; n < end * 16 && n < n_; ++n) {
      const int64_t lane = n % 16;
      const uint8_t* strip = packed_.data() + n / 16 * strip_bytes_;
      for (int64_t k = 0; k < k_; ++k) {
        float& value = out[n * k_ + k];
        if (mode_ == WeightMode::int8) {
          value = static_cast<float>(strip[k / 4 * 64 + lane * 4 + k % 4] - 128) * scales_.data()[n];
        } else if (mode_ == WeightMode::int4) {
          const uint8_t* group = strip + k / 64 * 544;
          const uint8_t byte = group[32 + k % 64 / 8 * 64 + lane * 4 + k % 4];
          const int nibble = k % 8 < 4 ? byte & 15 : byte >> 4;
          value = static_cast<float>(nibble - 8) * from_bf16(reinterpret_cast<const uint16_t*>(group)[lane]);
        } else if (mode_ == WeightMode::bf16) {
          value = from_bf16(reinterpret_cast<const uint16_t*>(strip)[k * 16 + lane]);
        } else {
          value = reinterpret_cast<const float*>(strip)[k * 16 + lane];
        }
      }
    }
  });
}

}  // namespace statepool
