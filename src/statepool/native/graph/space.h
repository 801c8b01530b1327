// What distances mean: metric, element type, and how a vector of the user becomes a row or a query.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "distance.h"

namespace statepool::graph {

enum class Metric : int { l2 = 0, cos = 1, ip = 2 };

// Rows are comparable by Euclidean distance under every metric: cos stores unit vectors, ip appends the coordinate that
// lifts all rows to one norm (a query has 0 there), so one graph rule serves the three.
struct Space {
  Metric metric;
  Dtype dtype;
  int dim;         // of the user's vectors
  int dims;        // of a row: padded with zeros to a multiple of 16
  size_t stride;   // bytes of a row, a multiple of 64
  float norm = 0;  // ip: the norm all rows are lifted to

  Space(Metric metric, Dtype dtype, int dim) : metric(metric), dtype(dtype), dim(dim) {
    dims = (dim + (metric == Metric::ip ? 1 : 0) + 15) / 16 * 16;
    stride = (static_cast<size_t>(dims) * element_bytes() + (dtype == Dtype::i8 ? 4 : 0) + 63) / 64 * 64;
  }

  int element_bytes() const { return dtype == Dtype::f32 ? 4 : dtype == Dtype::i8 ? 1 : 2; }

  static double square_of(const float* x, int dim) {
    double sums[8] = {};
    int i = 0;
    for (; i + 8 <= dim; i += 8)
      for (int lane = 0; lane < 8; ++lane) sums[lane] += static_cast<double>(x[i + lane]) * x[i + lane];
    for (; i < dim; ++i) sums[i % 8] += static_cast<double>(x[i]) * x[i];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  }
  static double norm_of(const float* x, int dim) { return std::sqrt(square_of(x, dim)); }

  // `x` (dim floats) as `dims` floats: normalised for cos, lifted for ip unless it is a query.
  // Raises std::domain_error for values that are not finite and for a zero vector under cos.
  void prepare(const float* x, float* out, bool query) const {
    const double length = norm_of(x, dim);
    if (!std::isfinite(length)) throw std::domain_error("holds NaN or infinity; every value must be finite");
    if (metric == Metric::cos && length == 0) throw std::domain_error("is zero, which has no direction under metric cos");
    const double scale = metric == Metric::cos ? 1.0 / length : 1.0;
    for (int i = 0; i < dim; ++i) out[i] = static_cast<float>(static_cast<double>(x[i]) * scale);
    for (int i = dim; i < dims; ++i) out[i] = 0;
    if (metric == Metric::ip && !query) {
      const double rest = static_cast<double>(norm) * norm - length * length;
      out[dim] = static_cast<float>(rest > 0 ? std::sqrt(rest) : 0.0);
    }
  }

  // Distances as users see them: l2 squared, 1 - cosine, minus the inner product.
  void distances(const float* query, const char* rows, const uint32_t* ids, int count, float* out) const {
    const DistanceKernels& kernels = distance_kernels();
    const int type = static_cast<int>(dtype);
    if (metric == Metric::l2) return kernels.squared[type](query, rows, stride, ids, count, dims, out);
    kernels.dot[type](query, rows, stride, ids, count, dims, out);
    const float bias = metric == Metric::cos ? 1.0f : 0.0f;
    for (int i = 0; i < count; ++i) out[i] = bias - out[i];
  }
};

}  // namespace statepool::graph
