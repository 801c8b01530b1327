// Builds the clusters of one segment: k-means over centred keys, one head at a time, every sum in a fixed order.
#include "wave_build.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../gemm.h"
#include "../memory.h"
#include "../pool.h"
#include "wave.h"
#include "widen.h"

namespace statepool {
namespace {

// Nearest even.
void narrow(float x, uint16_t* out) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  *out = static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
void narrow(float x, float* out) { *out = x; }

// A float that is not below x.
float above(double x) {
  const float f = static_cast<float>(x);
  return f < x ? std::nextafter(f, std::numeric_limits<float>::infinity()) : f;
}

constexpr int64_t kBlock = 256;  // rows quantised together: their scores stay in the cache

struct Scratch {
  Buffer<float> keys, centroids, tiles, bias, sums, scores;
  std::vector<QuantRows> blocks;
  std::vector<int32_t> best, members;
};

Scratch& scratch_of_thread() {
  static thread_local Scratch one;
  return one;
}

void to_tiles(const float* centroids, int64_t padded, int64_t clusters, int64_t hd, float* tiles) {
  for (int64_t c = 0; c < padded; ++c)
    for (int64_t d = 0; d < hd; ++d)
      tiles[(c / 16 * hd + d) * 16 + c % 16] = c < clusters ? centroids[c * hd + d] : 0.0f;
}

void quantize(const float* y, int64_t n, int64_t hd, Scratch& s) {
  s.blocks.resize(static_cast<size_t>((n + kBlock - 1) / kBlock));
  for (int64_t row = 0; row < n; ++row) {
    QuantRows& block = s.blocks[static_cast<size_t>(row / kBlock)];
    if (row % kBlock == 0) block.resize(std::min(kBlock, n - row), hd);
    quantize_row(y + row * hd, hd, block, row % kBlock);
  }
}

// The nearest centroid by int8 products, exact sums: a step on the way only looks for where the next one starts.
void assign_roughly(int64_t n, int64_t clusters, int64_t padded, int64_t hd, Scratch& s) {
  const Linear centroids(s.centroids.data(), clusters, hd, WeightMode::int8, nullptr);
  s.scores.reserve(static_cast<size_t>(kBlock * padded));
  std::fill_n(s.scores.data(), kBlock * padded, -std::numeric_limits<float>::infinity());
  for (int64_t row = 0; row < n; row += kBlock) {
    const QuantRows& block = s.blocks[static_cast<size_t>(row / kBlock)];
    centroids.run(block, Output{s.scores.data(), padded});
    wave_kernels().best_of(s.scores.data(), block.rows, padded, s.best.data() + row);
  }
}

// Centres `n` keys of one head, clusters them, leaves cluster numbers in s.best and plain means (centred) in s.centroids.
// Returns nothing; the mean that was taken off is in `mean`. With `labels` only the last round's sums are left to do.
template <class T>
void cluster(const T* keys, const WaveShape& shape, const uint16_t* labels, Scratch& s, std::vector<float>& mean) {
  const int64_t n = shape.tokens - shape.pinned, hd = shape.head_dim, clusters = shape.clusters, padded = shape.padded;
  s.keys.reserve(static_cast<size_t>(n * hd));
  s.centroids.reserve(static_cast<size_t>(padded * hd));
  s.tiles.reserve(static_cast<size_t>(padded * hd));
  s.bias.reserve(static_cast<size_t>(padded));
  s.sums.reserve(static_cast<size_t>(padded * hd));
  s.best.resize(static_cast<size_t>(n));
  s.members.resize(static_cast<size_t>(padded));
  float *y = s.keys.data(), *centroids = s.centroids.data(), *sums = s.sums.data();
  mean.assign(static_cast<size_t>(hd), 0.0f);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < hd; ++d) y[i * hd + d] = widen(keys[(shape.pinned + i) * hd + d]);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < hd; ++d) mean[static_cast<size_t>(d)] += y[i * hd + d];
  for (float& x : mean) x /= static_cast<float>(n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < hd; ++d) y[i * hd + d] -= mean[static_cast<size_t>(d)];
  for (int64_t c = 0; c < clusters; ++c)
    std::copy_n(y + ((2 * c + 1) * n / (2 * clusters)) * hd, hd, centroids + c * hd);
  for (int64_t c = 0; c < padded; ++c)
    s.bias.data()[c] = c < clusters ? 0.0f : -std::numeric_limits<float>::infinity();
  const int64_t first = labels != nullptr ? shape.iterations - 1 : 0;
  if (first + 1 < shape.iterations) quantize(y, n, hd, s);
  for (int64_t round = first; round < shape.iterations; ++round) {
    if (labels != nullptr) {
      std::copy_n(labels, n, s.best.data());
    } else if (round + 1 < shape.iterations) {
      assign_roughly(n, clusters, padded, hd, s);
    } else {
      to_tiles(centroids, padded, clusters, hd, s.tiles.data());
      wave_kernels().assign(y, n, s.tiles.data(), s.bias.data(), padded / 16, static_cast<int>(hd), s.best.data());
    }
    std::fill_n(sums, padded * hd, 0.0f);
    std::fill(s.members.begin(), s.members.end(), 0);
    for (int64_t i = 0; i < n; ++i) {
      float* sum = sums + s.best[static_cast<size_t>(i)] * hd;
      for (int64_t d = 0; d < hd; ++d) sum[d] += y[i * hd + d];
      ++s.members[static_cast<size_t>(s.best[static_cast<size_t>(i)])];
    }
    const bool last = round + 1 == shape.iterations;
    for (int64_t c = 0; c < clusters; ++c) {
      const float* sum = sums + c * hd;
      double length = 0;
      for (int64_t d = 0; d < hd; ++d) length += static_cast<double>(sum[d]) * static_cast<double>(sum[d]);
      // An empty cluster, or one whose keys cancel, keeps its direction.
      const double by = last ? static_cast<double>(s.members[static_cast<size_t>(c)]) : std::sqrt(length);
      if (!(by > 0)) continue;
      for (int64_t d = 0; d < hd; ++d)
        centroids[c * hd + d] = static_cast<float>(static_cast<double>(sum[d]) / by);
    }
  }
}

template <class T>
void build_head(const T* keys, const T* values, const WaveShape& shape, int64_t head, const uint16_t* labels,
                const WaveArrays& out) {
  Scratch& s = scratch_of_thread();
  std::vector<float> mean;
  cluster(keys, shape, labels != nullptr ? labels + head * (shape.tokens - shape.pinned) : nullptr, s, mean);
  const int64_t hd = shape.head_dim, padded = shape.padded, pinned = shape.pinned, n = shape.tokens;
  int32_t* offsets = out.offsets + head * (padded + 1);
  int32_t* order = out.order + head * n;
  offsets[0] = static_cast<int32_t>(pinned);
  for (int64_t c = 0; c < padded; ++c) offsets[c + 1] = offsets[c] + s.members[static_cast<size_t>(c)];
  for (int64_t i = 0; i < pinned; ++i) order[i] = static_cast<int32_t>(i);
  std::vector<int32_t> next(offsets, offsets + padded);
  for (int64_t i = pinned; i < n; ++i)
    order[next[static_cast<size_t>(s.best[static_cast<size_t>(i - pinned)])]++] = static_cast<int32_t>(i);
  T* rows = static_cast<T*>(out.rows) + head * n * 2 * hd;
  const auto lay = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(keys + order[i] * hd, hd, rows + (begin + i) * hd);
      std::copy_n(values + order[i] * hd, hd, rows + (end + i) * hd);
    }
  };
  lay(0, pinned);
  T* tiles = static_cast<T*>(out.centroids) + head * padded * hd;
  T* variances = out.variances ? static_cast<T*>(out.variances) + head * padded * hd : nullptr;
  T* means = static_cast<T*>(out.means) + head * padded * hd;
  std::vector<double> value(static_cast<size_t>(hd)), variance(static_cast<size_t>(hd));
  std::vector<T> centre(static_cast<size_t>(hd));
  for (int64_t c = 0; c < padded; ++c) {
    const int64_t begin = offsets[c], end = offsets[c + 1], at = head * padded + c;
    const double size = static_cast<double>(end - begin);
    lay(begin, end);
    for (int64_t d = 0; d < hd; ++d) {
      const float x = begin < end ? s.centroids.data()[c * hd + d] + mean[static_cast<size_t>(d)] : 0.0f;
      narrow(x, &centre[static_cast<size_t>(d)]);
      tiles[(c / 16 * hd + d) * 16 + c % 16] = centre[static_cast<size_t>(d)];
    }
    std::fill(value.begin(), value.end(), 0.0);
    std::fill(variance.begin(), variance.end(), 0.0);
    double far = 0, spread = 0;
    for (int64_t i = begin; i < end; ++i) {
      double distance = 0;
      for (int64_t d = 0; d < hd; ++d) {
        const size_t j = static_cast<size_t>(d);
        const double off = static_cast<double>(widen(rows[(begin + i) * hd + d])) - static_cast<double>(widen(centre[j]));
        distance += off * off;
        variance[j] += off * off;
        value[j] += static_cast<double>(widen(rows[(end + i) * hd + d]));
      }
      far = std::max(far, distance);
      spread += distance;
    }
    double value_far = 0;
    for (int64_t d = 0; d < hd; ++d) narrow(static_cast<float>(size > 0 ? value[static_cast<size_t>(d)] / size : 0.0), means + c * hd + d);
    for (int64_t i = begin; i < end; ++i) {
      double distance = 0;
      for (int64_t d = 0; d < hd; ++d) {
        const double off = static_cast<double>(widen(rows[(end + i) * hd + d])) - static_cast<double>(widen(means[c * hd + d]));
        distance += off * off;
      }
      value_far = std::max(value_far, distance);
    }
    out.reach[at] = above(std::sqrt(far) * (1 + 1e-9));
    out.value_reach[at] = above(std::sqrt(value_far) * (1 + 1e-9));
    out.spread[at] = size > 0 ? static_cast<float>(spread / size / static_cast<double>(hd)) : 0.0f;
    out.log_size[at] = size > 0 ? static_cast<float>(std::log(size)) : -std::numeric_limits<float>::infinity();
    if (variances)
      for (int64_t d = 0; d < hd; ++d)
        narrow(static_cast<float>(size > 0 ? variance[static_cast<size_t>(d)] / size : 0.0),
               variances + (c / 16 * hd + d) * 16 + c % 16);
  }
}

}  // namespace

void wave_build(const void* keys, const void* values, bool bf16, const WaveShape& shape, const uint16_t* labels,
                const WaveArrays& out) {
  const int64_t one = shape.tokens * shape.head_dim;
  parallel_for(shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      if (bf16)
        build_head(static_cast<const uint16_t*>(keys) + head * one, static_cast<const uint16_t*>(values) + head * one,
                   shape, head, labels, out);
      else
        build_head(static_cast<const float*>(keys) + head * one, static_cast<const float*>(values) + head * one, shape,
                   head, labels, out);
    }
  });
}

}  // namespace statepool
