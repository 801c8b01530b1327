#include "../simd.h"
#include "wave.h"

namespace statepool::STATEPOOL_NS {
namespace {

STATEPOOL_INLINE F16 lanes(const float* p) { return load(p); }
STATEPOOL_INLINE F16 lanes(const uint16_t* p) { return load_bf16(p); }

const float kInfinity = __builtin_inff();

// Rows and tiles that one pass of `assign` holds in registers, and keys that one of `dot` does.
#if defined(STATEPOOL_ISA_avx512)
constexpr int kRows = 6, kTiles = 4, kTogether = 4;
#else
constexpr int kRows = 2, kTiles = 2, kTogether = 1;
#endif

template <int N, int W>
STATEPOOL_NOINLINE void products(const float* y, const float* tiles, const float* bias, int head_dim, float* out) {
  F16 sum[N][W];
  for (int w = 0; w < W; ++w) {
    const F16 start = load(bias + 16 * w);
    for (int i = 0; i < N; ++i) sum[i][w] = start;
  }
  for (int d = 0; d < head_dim; ++d) {
    F16 c[W];
    for (int w = 0; w < W; ++w) c[w] = load(tiles + (w * static_cast<int64_t>(head_dim) + d) * 16);
    for (int i = 0; i < N; ++i) {
      const F16 x = set1(y[i * head_dim + d]);
      for (int w = 0; w < W; ++w) sum[i][w] = fma(x, c[w], sum[i][w]);
    }
  }
  for (int i = 0; i < N; ++i)
    for (int w = 0; w < W; ++w) store(out + (i * W + w) * 16, sum[i][w]);
}

// The first of the largest of sixteen lanes and what they stand for.
STATEPOOL_INLINE int32_t first_largest(const float* top, const int32_t* where) {
  float most = -kInfinity;
  int32_t at = 0x7fffffff;
  for (int lane = 0; lane < 16; ++lane)
    if (top[lane] > most || (top[lane] == most && where[lane] < at)) most = top[lane], at = where[lane];
  return at;
}

// Keeps per row the largest lane values seen and the tile they came from; lanes are compared at the end.
template <int N>
STATEPOOL_INLINE void assign_rows(const float* y, const float* tiles, const float* bias, int64_t tile_count, int head_dim,
                                  int32_t* best) {
  float scores[N * kTiles * 16], top[N * 16];
  int32_t where[N * 16];
  for (int i = 0; i < N * 16; ++i) top[i] = -kInfinity, where[i] = i % 16;
  const auto book = [&](int64_t tile, int width) {
    for (int i = 0; i < N; ++i)
      for (int w = 0; w < width; ++w)
        for (int lane = 0; lane < 16; ++lane) {
          const float s = scores[(i * width + w) * 16 + lane];
          const bool better = s > top[i * 16 + lane];
          top[i * 16 + lane] = better ? s : top[i * 16 + lane];
          where[i * 16 + lane] = better ? static_cast<int32_t>((tile + w) * 16 + lane) : where[i * 16 + lane];
        }
  };
  int64_t tile = 0;
  for (; tile + kTiles <= tile_count; tile += kTiles) {
    products<N, kTiles>(y, tiles + tile * head_dim * 16, bias + tile * 16, head_dim, scores);
    book(tile, kTiles);
  }
  for (; tile < tile_count; ++tile) {
    products<N, 1>(y, tiles + tile * head_dim * 16, bias + tile * 16, head_dim, scores);
    book(tile, 1);
  }
  for (int i = 0; i < N; ++i) best[i] = first_largest(top + i * 16, where + i * 16);
}

void assign(const float* y, int64_t rows, const float* tiles, const float* bias, int64_t tile_count, int head_dim,
            int32_t* best) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    assign_rows<kRows>(y + row * head_dim, tiles, bias, tile_count, head_dim, best + row);
  for (; row < rows; ++row) assign_rows<1>(y + row * head_dim, tiles, bias, tile_count, head_dim, best + row);
}

// N vectors against W tiles: N * W chains, each ascending over d.
template <int N, int W, class T>
STATEPOOL_INLINE void scan_tiles(const float* q, const T* tiles, int head_dim, float scale, float* scores,
                                 int64_t stride) {
  F16 sum[N][W];
  for (int i = 0; i < N; ++i)
    for (int w = 0; w < W; ++w) sum[i][w] = zero();
  const int64_t tile = static_cast<int64_t>(head_dim) * 16;
  for (int d = 0; d < head_dim; ++d) {
    for (int w = 0; w < W; ++w) {
      const T* at = tiles + w * tile + d * 16;
      if ((d & 1) == 0) fetch(at + W * tile);
      const F16 c = lanes(at);
      for (int i = 0; i < N; ++i) sum[i][w] = fma(set1(q[i * head_dim + d]), c, sum[i][w]);
    }
  }
  for (int i = 0; i < N; ++i)
    for (int w = 0; w < W; ++w) {
      store(scores + i * stride + w * 16, mul(sum[i][w], set1(scale)));
    }
}

template <int N, class T>
STATEPOOL_INLINE void scan_vectors(const float* q, const T* tiles, int64_t tile_count, int head_dim, float scale,
                                   float* scores, int64_t stride) {
  const int64_t tile = static_cast<int64_t>(head_dim) * 16;
  int64_t t = 0;
  for (; t + 4 <= tile_count; t += 4)
    scan_tiles<N, 4>(q, tiles + t * tile, head_dim, scale, scores + t * 16, stride);
  for (; t < tile_count; ++t)
    scan_tiles<N, 1>(q, tiles + t * tile, head_dim, scale, scores + t * 16, stride);
}

template <class T>
void scan(const float* q, int vectors, const void* tiles, int64_t tile_count, int head_dim, float scale,
          float* scores, int64_t stride) {
  const T* at = static_cast<const T*>(tiles);
  int i = 0;
  for (; i + 4 <= vectors; i += 4)
    scan_vectors<4>(q + i * head_dim, at, tile_count, head_dim, scale, scores + i * stride, stride);
  for (; i + 2 <= vectors; i += 2)
    scan_vectors<2>(q + i * head_dim, at, tile_count, head_dim, scale, scores + i * stride, stride);
  if (i < vectors) scan_vectors<1>(q + i * head_dim, at, tile_count, head_dim, scale, scores + i * stride, stride);
}

STATEPOOL_INLINE float largest(const float* scores, int64_t count) {
  F16 top[4];
  for (F16& one : top) one = set1(-kInfinity);
  int64_t i = 0;
  for (; i + 64 <= count; i += 64)
    for (int j = 0; j < 4; ++j) top[j] = max(load(scores + i + 16 * j), top[j]);
  for (; i + 16 <= count; i += 16) top[0] = max(load(scores + i), top[0]);
  float m = tree_max(max(max(top[0], top[1]), max(top[2], top[3])));
  for (; i < count; ++i) m = scores[i] > m ? scores[i] : m;
  return m;
}

void best_of(const float* scores, int64_t rows, int64_t count, int32_t* best) {
  for (int64_t i = 0; i < rows; ++i, scores += count) {
    const float m = largest(scores, count);
    int64_t c = 0;
    // Sixteen at a time, without a branch between them.
    for (int hits = 0; !hits; c += hits ? 0 : 16)
      for (int lane = 0; lane < 16; ++lane) hits |= scores[c + lane] == m;
    while (scores[c] != m) ++c;
    best[i] = static_cast<int32_t>(c);
  }
}

void add_softmax(const float* scores, int64_t count, float* weights, float* rank) {
  const F16 m = set1(largest(scores, count));
  F16 sum = zero();
  for (int64_t i = 0; i < count; i += 16) {
    const F16 e = exp16(sub(load(scores + i), m));
    store(weights + i, e);
    sum = add(sum, e);
  }
  const F16 share = div(set1(1.0f), set1(tree_sum(sum)));
  for (int64_t i = 0; i < count; i += 16) store(rank + i, fma(load(weights + i), share, load(rank + i)));
}

void add_variance(const float* v, const float* log_size, float factor, int64_t count, float* scores) {
  for (int64_t i = 0; i < count; i += 16) {
    const F16 variance = mul(load(v + i), set1(factor)), log_n = max(load(log_size + i), zero());
    const F16 half = mul(variance, set1(0.5f)), limit = add(log_n, log_n);
    // Above v = 2 log n the sum of n exponentials is its largest term: sqrt(2 v log n) - log n (random energy model).
    const F16 top = sub(sqrt(mul(limit, variance)), log_n);
    store(scores + i, add(load(scores + i), sub(half, zero_below(sub(half, top), variance, limit))));
  }
}

void add_size(const float* scores, const float* log_size, bool mass, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const F16 size = load(log_size + i);
    store(out + i, add(load(scores + i), mass ? size : min(size, zero())));
  }
}

void keys_of(const float* rank, const float* log_size, int64_t count, uint32_t* keys) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;  // those of a float that is not negative sort as it does
    std::memcpy(&bits, rank + i, sizeof bits);
    keys[i] = log_size[i] > -kInfinity ? bits + 1 : 0;
  }
}

// `keep` copies the keys of [least, last] in order, also over themselves.
#if defined(STATEPOOL_ISA_avx512) && !defined(STATEPOOL_SIMDE)
template <class Put>
STATEPOOL_INLINE int64_t sift(const uint32_t* keys, int64_t n, uint32_t least, uint32_t last, const Put& put) {
  const __m512i low = _mm512_set1_epi32(static_cast<int>(least)), high = _mm512_set1_epi32(static_cast<int>(last));
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 there = static_cast<__mmask16>(n - i >= 16 ? 0xffffu : (1u << (n - i)) - 1u);
    const __m512i each = _mm512_maskz_loadu_epi32(there, keys + i);
    const __mmask16 hit = _mm512_mask_cmple_epu32_mask(_mm512_mask_cmpge_epu32_mask(there, each, low), each, high);
    put(i, each, hit, count);
    count += __builtin_popcount(hit);
  }
  return count;
}
int64_t keep(const uint32_t* keys, int64_t n, uint32_t least, uint32_t last, uint32_t* out) {
  return sift(keys, n, least, last, [&](int64_t, __m512i each, __mmask16 hit, int64_t count) {
    _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(hit, each));
  });
}
int64_t at_least(const uint32_t* keys, int64_t n, uint32_t least, int32_t* at) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return sift(keys, n, least, 0xffffffffu, [&](int64_t i, __m512i, __mmask16 hit, int64_t count) {
    const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(i)));
    _mm512_storeu_si512(at + count, _mm512_maskz_compress_epi32(hit, places));
  });
}
#else
int64_t keep(const uint32_t* keys, int64_t n, uint32_t least, uint32_t last, uint32_t* out) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = keys[i];
    out[count] = key;
    count += key >= least && key <= last;
  }
  return count;
}
int64_t at_least(const uint32_t* keys, int64_t n, uint32_t least, int32_t* at) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    at[count] = static_cast<int32_t>(i);
    count += keys[i] >= least;
  }
  return count;
}
#endif

// Halves the values between which it lies, and every few halvings leaves behind the keys that are not between.
uint32_t kth_largest(const uint32_t* keys, int64_t n, int64_t k, uint32_t* room, int64_t* above) {
  uint64_t low = 0, high = uint64_t{1} << 32;  // count(>= low) >= k > count(>= high)
  int64_t larger = 0, outside = 0;             // count(>= high), and those of them no longer among the keys
  for (int halvings = 1; high - low > 1; ++halvings) {
    const uint64_t middle = low + (high - low) / 2;
    const uint32_t least = static_cast<uint32_t>(middle);
    int32_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += keys[i] >= least;
    if (outside + count >= k) {
      low = middle;
    } else {
      high = middle;
      larger = outside + count;
    }
    if (halvings % 7 == 0 && n > 16) {
      n = keep(keys, n, static_cast<uint32_t>(low), static_cast<uint32_t>(high - 1), room);
      keys = room;
      outside = larger;
    }
  }
  *above = larger;
  return static_cast<uint32_t>(low);
}

// Rows anywhere; a list of their addresses.
template <class T>
struct Rows {
  const void* const* at;
  STATEPOOL_INLINE const T* row(int64_t r) const { return static_cast<const T*>(at[r]); }
  STATEPOOL_INLINE const T* later(int64_t r) const { return row(r + kRowsAhead); }
};

// Rows that follow each other: the hardware sees them coming.
struct Stretch {
  const float* rows;
  int head_dim;
  STATEPOOL_INLINE const float* row(int64_t r) const { return rows + r * head_dim; }
};
STATEPOOL_INLINE void fetch_row(const Stretch&, int64_t, int) {}
// Clusters are too short for it to see a stream: every line is fetched by name.
template <class T>
STATEPOOL_INLINE void fetch_row(const Rows<T>& rows, int64_t r, int head_dim) {
  const char* later = reinterpret_cast<const char*>(rows.later(r));
  for (int b = 0; b < static_cast<int>(sizeof(T)) * head_dim; b += 64) fetch(later + b);
}

// R keys at once, so that a query is loaded for all of them; each product ascends over d on its own.
template <int N, int R, class Keys>
STATEPOOL_INLINE void dot_rows(const float* q, const Keys& keys, int64_t r, int head_dim, F16 (*sum)[R]) {
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < R; ++j) sum[i][j] = zero();
  const auto chunk = [&](int d) {
    F16 k[R];
    for (int j = 0; j < R; ++j) k[j] = lanes(keys.row(r + j) + d);
    for (int i = 0; i < N; ++i) {
      const F16 x = load(q + i * head_dim + d);
      for (int j = 0; j < R; ++j) sum[i][j] = fma(x, k[j], sum[i][j]);
    }
  };
  int d = 0;
  for (; d + 64 <= head_dim; d += 64)
    for (int e = 0; e < 64; e += 16) chunk(d + e);
  for (; d < head_dim; d += 16) chunk(d);
}

template <int N, class Keys>
STATEPOOL_INLINE void dot_vectors(const float* q, const Keys& keys, bool first, int64_t count, int head_dim, float scale,
                                  float* scores, int64_t stride) {
  int64_t r = 0;
  for (; r + 16 <= count; r += 16) {
    alignas(64) float sums[N][16 * 16];
    for (int j = 0; j < 16; j += kTogether) {
      F16 sum[N][kTogether];
      for (int k = 0; first && k < kTogether; ++k) fetch_row(keys, r + j + k, head_dim);
      dot_rows<N, kTogether>(q, keys, r + j, head_dim, sum);
      for (int i = 0; i < N; ++i)
        for (int k = 0; k < kTogether; ++k) store(sums[i] + 16 * (j + k), sum[i][k]);
    }
    for (int i = 0; i < N; ++i) store(scores + i * stride + r, mul(tree_sums(sums[i]), set1(scale)));
  }
  for (; r < count; ++r) {
    F16 sum[N][1];
    if (first) fetch_row(keys, r, head_dim);
    dot_rows<N, 1>(q, keys, r, head_dim, sum);
    for (int i = 0; i < N; ++i) scores[i * stride + r] = tree_sum(sum[i][0]) * scale;
  }
}

template <class Keys>
STATEPOOL_INLINE void dot_keys(const float* q, int vectors, const Keys& keys, int64_t count, int head_dim, float scale,
                               float* scores, int64_t stride) {
  int i = 0;
  for (; i + 4 <= vectors; i += 4)
    dot_vectors<4>(q + i * head_dim, keys, i == 0, count, head_dim, scale, scores + i * stride, stride);
  for (; i + 2 <= vectors; i += 2)
    dot_vectors<2>(q + i * head_dim, keys, i == 0, count, head_dim, scale, scores + i * stride, stride);
  if (i < vectors) dot_vectors<1>(q + i * head_dim, keys, i == 0, count, head_dim, scale, scores + i * stride, stride);
}

template <class T>
void dot(const float* q, int vectors, const void* const* keys, int64_t count, int head_dim, float scale, float* scores,
         int64_t stride) {
  dot_keys(q, vectors, Rows<T>{keys}, count, head_dim, scale, scores, stride);
}

void dot_stretch(const float* q, int vectors, const float* keys, int64_t count, int head_dim, float scale, float* scores,
                 int64_t stride) {
  dot_keys(q, vectors, Stretch{keys, head_dim}, count, head_dim, scale, scores, stride);
}

float soften(float* scores, int64_t count, float* m) {
  *m = largest(scores, count);
  const F16 top = set1(*m);
  F16 sum = zero();
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const F16 e = exp16(sub(load(scores + i), top));
    store(scores + i, e);
    sum = add(sum, e);
  }
  if (i < count) {
    float rest[16];
    for (int j = 0; j < 16; ++j) rest[j] = i + j < count ? scores[i + j] : -kInfinity;
    const F16 e = exp16(sub(load(rest), top));
    store(rest, e);
    for (int64_t j = 0; i + j < count; ++j) scores[i + j] = rest[j];
    sum = add(sum, e);
  }
  return tree_sum(sum);
}

template <int N, int D, class T>
STATEPOOL_INLINE void weigh_tile(const float* p, int64_t stride, const Rows<T>& rows, int d, int64_t count, int head_dim,
                                 float* acc) {
  F16 sum[N][D];
  for (int i = 0; i < N; ++i)
    for (int t = 0; t < D; ++t) sum[i][t] = load(acc + i * head_dim + d + 16 * t);
  for (int64_t r = 0; r < count; ++r) {
    const auto *row = rows.row(r) + d, *later = rows.later(r) + d;
    for (int t = 0; t < D; t += 64 / (16 * static_cast<int>(sizeof *row))) fetch(later + 16 * t);
    F16 weight[N];
    for (int i = 0; i < N; ++i) weight[i] = set1(p[i * stride + r]);
    for (int t = 0; t < D; ++t) {
      const F16 v = lanes(row + 16 * t);
      for (int i = 0; i < N; ++i) sum[i][t] = fma(weight[i], v, sum[i][t]);
    }
  }
  for (int i = 0; i < N; ++i)
    for (int t = 0; t < D; ++t) store(acc + i * head_dim + d + 16 * t, sum[i][t]);
}

template <int N, class T>
STATEPOOL_INLINE void weigh_vectors(const float* p, int64_t stride, const Rows<T>& rows, int64_t count, int head_dim, float* acc) {
  int d = 0;
#if defined(STATEPOOL_ISA_avx512)
  if constexpr (N <= 2)
    for (; d + 128 <= head_dim; d += 128) weigh_tile<N, 8>(p, stride, rows, d, count, head_dim, acc);
#endif
  for (; d + 64 <= head_dim; d += 64) weigh_tile<N, 4>(p, stride, rows, d, count, head_dim, acc);
  for (; d < head_dim; d += 16) weigh_tile<N, 1>(p, stride, rows, d, count, head_dim, acc);
}

template <class T>
void weigh(const float* p, int64_t stride, int vectors, const void* const* list, int64_t count, int head_dim, float* acc) {
  const Rows<T> rows{list};
  int i = 0;
  for (; i + 4 <= vectors; i += 4) weigh_vectors<4>(p + i * stride, stride, rows, count, head_dim, acc + i * head_dim);
  for (; i + 2 <= vectors; i += 2) weigh_vectors<2>(p + i * stride, stride, rows, count, head_dim, acc + i * head_dim);
  if (i < vectors) weigh_vectors<1>(p + i * stride, stride, rows, count, head_dim, acc + i * head_dim);
}

}  // namespace

extern const WaveKernels wave_kernels;
const WaveKernels wave_kernels = {
    &assign,       &best_of,   &scan<uint16_t>, &scan<float>,   &add_softmax, &add_variance, &add_size, &keys_of,
    &kth_largest,  &at_least,  &dot<uint16_t>,  &dot<float>,    &dot_stretch, &soften,      &weigh<uint16_t>, &weigh<float>};

}  // namespace statepool::STATEPOOL_NS
