#include "attention.h"
#include "simd.h"

namespace statepool::STATEPOOL_NS {
namespace {

// Query vectors that share the loads of a page: as many as the registers hold with two accumulators each.
#if defined(STATEPOOL_ISA_avx512)
constexpr int kShare = 8;
#elif defined(STATEPOOL_ISA_avx2)
constexpr int kShare = 3;
#else
constexpr int kShare = 2;
#endif
// Above so many vectors a bf16 page is widened once into scratch instead of once per group of kShare.
constexpr int kWidenAbove = 2 * kShare;
// Pages of a head between what is read and what is fetched; one is late for memory under load.
constexpr int kAhead = 2;

STATEPOOL_INLINE F16 lanes(const float* p) { return load(p); }
STATEPOOL_INLINE F16 lanes(const uint16_t* p) { return load_bf16(p); }

const float kInfinity = __builtin_inff();

// Keeps the compiler from loading the next operand early: the accumulators leave no register for it.
STATEPOOL_INLINE void keep_order() { __asm__ volatile("" ::: "memory"); }

// scores[i][lane] = scale * q[i] . K[:, lane]: an even and an odd chain over d, each ascending, then added.
// `ahead` is a later page: one line of it is fetched per line read.
template <int N, class T>
STATEPOOL_INLINE void score(const float* q, int head_dim, const T* keys, const T* ahead, float scale, float* scores) {
  F16 even[N], odd[N];
  for (int i = 0; i < N; ++i) even[i] = odd[i] = zero();
  for (int d = 0; d < head_dim; d += 2) {
    const F16 k0 = lanes(keys + d * kPage);
    for (int i = 0; i < N; ++i) even[i] = fma(set1(q[i * head_dim + d]), k0, even[i]);
    keep_order();
    const F16 k1 = lanes(keys + d * kPage + kPage);
    fetch(ahead + d * kPage);
    for (int i = 0; i < N; ++i) odd[i] = fma(set1(q[i * head_dim + d + 1]), k1, odd[i]);
    keep_order();
  }
  for (int i = 0; i < N; ++i) store(scores + i * kPage, mul(add(even[i], odd[i]), set1(scale)));
}

// acc[i][d .. d + 16 * D] += sum over j of p[i][j] * V[j][d ..], j ascending.
template <int N, int D, class T>
STATEPOOL_INLINE void weigh_tile(const float* p, int head_dim, const T* values, const T* ahead, int count,
                                 float* acc) {
  F16 sum[N][D];
  for (int i = 0; i < N; ++i)
    for (int t = 0; t < D; ++t) sum[i][t] = load(acc + i * head_dim + 16 * t);
  for (int j = 0; j < count; ++j) {
    fetch(ahead + j * head_dim);
    for (int t = 0; t < D; ++t) {
      const F16 v = lanes(values + j * head_dim + 16 * t);
      for (int i = 0; i < N; ++i) sum[i][t] = fma(set1(p[i * kPage + j]), v, sum[i][t]);
      keep_order();
    }
  }
  for (int i = 0; i < N; ++i)
    for (int t = 0; t < D; ++t) store(acc + i * head_dim + 16 * t, sum[i][t]);
}

template <int N, class T>
STATEPOOL_INLINE void weigh(const float* p, int head_dim, const T* values, const T* ahead, int count, float* acc) {
  int d = 0;
  for (; d + 32 <= head_dim; d += 32)
    weigh_tile<N, 2>(p, head_dim, values + d, ahead + d, count, acc + d);
  if (d < head_dim) weigh_tile<N, 1>(p, head_dim, values + d, ahead + d, count, acc + d);
}

// Runs body<N>(i, first) over `vectors` in groups of kShare, then of 2 and 1; `first` marks the first group.
template <class Body>
STATEPOOL_INLINE void grouped(int vectors, Body&& body) {
  int i = 0;
  for (; i + kShare <= vectors; i += kShare) body.template run<kShare>(i);
  if constexpr (kShare > 4)
    for (; i + 4 <= vectors; i += 4) body.template run<4>(i);
  for (; i + 2 <= vectors; i += 2) body.template run<2>(i);
  if (i < vectors) body.template run<1>(i);
}

template <class T>
struct Score {
  const float* q;
  int head_dim;
  const T *keys, *ahead;
  float scale;
  float* scores;
  template <int N>
  STATEPOOL_INLINE void run(int i) {
    score<N>(q + i * head_dim, head_dim, keys, i == 0 ? ahead : keys, scale, scores + i * kPage);
  }
};

template <class T>
struct Weigh {
  const float* p;
  int head_dim;
  const T *values, *ahead;
  int count;
  float* acc;
  template <int N>
  STATEPOOL_INLINE void run(int i) {
    weigh<N>(p + i * kPage, head_dim, values, i == 0 ? ahead : values, count, acc + i * head_dim);
  }
};

// One page of the online softmax of one vector: scores become weights in place; lanes >= count are not seen.
STATEPOOL_INLINE void soften(float* scores, int count, float& m, float& l, float* acc, int head_dim) {
  F16 s = load(scores);
  if (count < kPage) s = keep_first(s, count, -kInfinity);
  const float highest = tree_max(s);
  const float top = highest > m ? highest : m;
  const float shift = top > -kInfinity ? top : 0.0f;
  if (top > m) {
    const F16 correction = exp16(set1(m - shift));
    float c[16];
    store(c, correction);
    l *= c[0];
    for (int d = 0; d < head_dim; d += 16) store(acc + d, mul(load(acc + d), correction));
    m = top;
  }
  const F16 p = exp16(sub(s, set1(shift)));
  l += tree_sum(p);
  store(scores, p);
}

template <class T>
void page_of_vectors(const SegmentJob& job, int head, int first, const T* keys, const T* values, const T* next_keys,
                     const T* next_values, int64_t seen) {
  const int n = job.vectors - first, hd = job.head_dim, group = job.group;
  const int64_t at = static_cast<int64_t>(head) * job.vectors + first;
  float *scores = job.scores + first * kPage, *acc = job.acc + at * hd;
  grouped(n, Score<T>{job.q + at * hd, hd, keys, next_keys, job.scale, scores});
  for (int v = 0; v < n; ++v) {
    const int64_t count = seen + v / group;
    soften(scores + v * kPage, count < kPage ? static_cast<int>(count) : kPage, job.m[at + v], job.l[at + v],
           acc + static_cast<int64_t>(v) * hd, hd);
  }
  // Rows that do not see the whole page go alone: bytes beyond their last token may be anything, NaN included.
  int v = 0;
  for (int64_t count = seen; count < kPage && v < n; ++count, v += group)
    grouped(group, Weigh<T>{scores + v * kPage, hd, values, next_values, static_cast<int>(count),
                            acc + static_cast<int64_t>(v) * hd});
  if (v < n)
    grouped(n - v, Weigh<T>{scores + v * kPage, hd, values, next_values, kPage, acc + static_cast<int64_t>(v) * hd});
}

STATEPOOL_INLINE void widen_page(const uint16_t* page, int n, float* out) {
  for (int i = 0; i < n; i += 16) store(out + i, load_bf16(page + i));
}

template <class T>
void page_of_heads(const SegmentJob& job, int page, int first, int64_t seen) {
  const int64_t stride = kPage * job.head_dim;  // from a head to the next
  const T* keys = static_cast<const T*>(job.keys);
  const T* values = static_cast<const T*>(job.values);
  for (int head = 0; head < job.heads; ++head) {
    const int64_t at = job.blocks[page] * job.block_stride + head * stride;
    if constexpr (sizeof(T) == 2) {
      if (job.vectors - first > kWidenAbove) {
        float* wide_k = job.widened;
        float* wide_v = job.widened + stride;
        widen_page(keys + at, static_cast<int>(stride), wide_k);
        widen_page(values + at, static_cast<int>(stride), wide_v);
        page_of_vectors<float>(job, head, first, wide_k, wide_v, wide_k, wide_v, seen);
        continue;
      }
    }
    const int later = page + (head + kAhead) / job.heads;
    const int64_t next = later < job.pages ? job.blocks[later] * job.block_stride + (head + kAhead) % job.heads * stride : at;
    page_of_vectors<T>(job, head, first, keys + at, values + at, keys + next, values + next, seen);
  }
}

template <class T>
void segment(const SegmentJob& job) {
  const int rows = job.vectors / job.group, all = job.heads * job.vectors;
  for (int v = 0; v < all && job.first_page == 0; ++v) {
    job.m[v] = -kInfinity;
    job.l[v] = 0.0f;
  }
  if (job.first_page == 0)
    std::memset(job.acc, 0, sizeof(float) * static_cast<size_t>(all) * static_cast<size_t>(job.head_dim));
  for (int page = job.first_page; page < job.pages; ++page) {
    const int64_t skipped = page * kPage - job.first_position;  // rows before this one see nothing of the page
    const int64_t row = skipped > 0 ? skipped : 0;
    if (row >= rows) break;
    page_of_heads<T>(job, page, static_cast<int>(row) * job.group, job.first_position + row - page * kPage + 1);
  }
}

void fold(float* m, float* l, float* acc, const float* m2, const float* l2, const float* acc2, int vectors,
          int head_dim) {
  for (int v = 0; v < vectors; ++v, acc += head_dim, acc2 += head_dim) {
    if (l2[v] == 0.0f) continue;  // nothing seen; a sum that is not a number goes on
    const float top = m[v] > m2[v] ? m[v] : m2[v];
    const F16 e1 = exp16(set1(m[v] - top)), e2 = exp16(set1(m2[v] - top));
    for (int d = 0; d < head_dim; d += 16)
      store(acc + d, fma(load(acc2 + d), e2, mul(load(acc + d), e1)));
    float total[16];
    store(total, fma(set1(l2[v]), e2, mul(set1(l[v]), e1)));
    l[v] = total[0];
    m[v] = top;
  }
}

void finish(const float* acc, float l, float* out, int head_dim) {
  for (int d = 0; d < head_dim; d += 16) store(out + d, div(load(acc + d), set1(l)));
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {&segment<uint16_t>, &segment<float>, &fold, &finish};

}  // namespace statepool::STATEPOOL_NS
