#include "kernels.h"

#include "../simd.h"

namespace statepool::STATEPOOL_NS {

#include "lanes.inc"

namespace {

// Two vectors side by side: the divisions of one order hide behind each other.
constexpr int kVectors = 2;

// Levinson's recursion for m = s' T^-1 s of every lane, T Toeplitz of rho. With b the backward predictors and e their
// errors, T^-1 is the sum of b b' / e over the orders, so m is the sum of (b's)^2 / e: the solution itself is not needed.
// rho[length + 1], s[length] and f[length + 1] hold rows of all lanes; rho is zero from the code's length on.
template <class Scalar>
STATEPOOL_INLINE void levinson(const Scalar* rho, const Scalar* s, Scalar* f, int length, Scalar* out) {
  using V = typename Wide<Scalar>::V;
  constexpr int kLanes = Wide<Scalar>::kLanes, kRow = kLanes * kVectors;
  V e[kVectors], m[kVectors], forward[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const V first = load(s + v * kLanes);
    e[v] = load(rho + v * kLanes);
    m[v] = div(mul(first, first), e[v]);
    store(f + v * kLanes, set1(Scalar(1)));
    forward[v] = load(rho + kRow + v * kLanes);
  }
  for (int order = 1; order < length; ++order) {
    V k[kVectors], g[kVectors], next[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      k[v] = div(sub(set1(Scalar(0)), forward[v]), e[v]);
      e[v] = fma(k[v], forward[v], e[v]);
      g[v] = next[v] = set1(Scalar(0));
      store(f + order * kRow + v * kLanes, set1(Scalar(0)));
    }
    int i = 0, j = order;
    for (; i < j; ++i, --j)
      for (int v = 0; v < kVectors; ++v) {
        Scalar *fi = f + i * kRow + v * kLanes, *fj = f + j * kRow + v * kLanes;
        const V left = load(fi), right = load(fj);
        const V a = fma(k[v], right, left), b = fma(k[v], left, right);
        store(fi, a);
        store(fj, b);
        g[v] = fma(b, load(s + i * kRow + v * kLanes), fma(a, load(s + j * kRow + v * kLanes), g[v]));
        next[v] = fma(b, load(rho + (i + 1) * kRow + v * kLanes), fma(a, load(rho + (j + 1) * kRow + v * kLanes), next[v]));
      }
    for (int v = 0; v < kVectors; ++v) {
      if (i == j) {
        Scalar* middle = f + i * kRow + v * kLanes;
        const V a = fma(k[v], load(middle), load(middle));
        store(middle, a);
        g[v] = fma(a, load(s + i * kRow + v * kLanes), g[v]);
        next[v] = fma(a, load(rho + (i + 1) * kRow + v * kLanes), next[v]);
      }
      forward[v] = next[v];
      m[v] = fma(g[v], div(g[v], e[v]), m[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, m[v]);
}

// R = T - s s', so the ratio is m / (1 - m). Rounding may leave nothing of 1 - m.
template <class Scalar>
STATEPOOL_INLINE Scalar ratio(Scalar m) {
  const Scalar rest = Scalar(1) - m;
  return rest > Scalar(0) ? m / rest : Scalar(NAN);
}

int64_t scratch(int length) { return (3ll * length + 4) * Wide<double>::kLanes * kVectors * 8; }

void autocorrelation(const int8_t* code, int n, int32_t* rho) {
  for (int k = 0; k < n; ++k) {
    int32_t sum = 0;
    for (int i = 0; i + k < n; ++i) sum += code[i] * code[i + k];
    rho[k] = sum;
  }
}

template <class Scalar>
struct Rows {
  static constexpr int kRow = Wide<Scalar>::kLanes * kVectors;
  Scalar *rho, *s, *f;
  Rows(void* scratch, int length) {
    rho = static_cast<Scalar*>(scratch);
    s = rho + int64_t(length + 1) * kRow;
    f = s + int64_t(length) * kRow;
    std::memset(rho, 0, sizeof(Scalar) * (2ll * length + 1) * kRow);
  }
};

void sir(const int8_t* codes, int64_t count, int n, int length, double ridge, void* scratch, double* out) {
  const Rows<double> rows(scratch, length);
  constexpr int kRow = Rows<double>::kRow;
  const int before = (length - n) / 2;
  double m[kRow];
  for (int64_t first = 0; first < count; first += kRow) {
    for (int lane = 0; lane < kRow; ++lane) {
      const int8_t* code = codes + (first + lane < count ? first + lane : count - 1) * n;
      for (int k = 0; k < n; ++k) {
        int32_t sum = 0;
        for (int i = 0; i + k < n; ++i) sum += code[i] * code[i + k];
        rows.rho[k * kRow + lane] = sum + (k ? 0.0 : ridge);
        rows.s[(before + k) * kRow + lane] = code[k];
      }
    }
    levinson(rows.rho, rows.s, rows.f, length, m);
    for (int lane = 0; lane < kRow && first + lane < count; ++lane) out[first + lane] = ratio(m[lane]);
  }
}

void sir_flips(const int8_t* code, int n, int length, float ridge, void* scratch, float* out) {
  const Rows<float> rows(scratch, length);
  constexpr int kRow = Rows<float>::kRow;
  const int before = (length - n) / 2;
  float m[kRow], lanes[kRow];
  for (int first = 0; first <= n; first += kRow) {
    for (int k = 0; k < n; ++k) {
      float sum = k ? 0.0f : ridge;
      for (int i = 0; i + k < n; ++i) sum += float(code[i] * code[i + k]);
      for (int lane = 0; lane < kRow; ++lane) {
        const int i = first + lane;
        int change = 0;
        if (k && i < n) change = 2 * code[i] * ((i + k < n ? code[i + k] : 0) + (i >= k ? code[i - k] : 0));
        lanes[lane] = sum - float(change);
      }
      std::memcpy(rows.rho + int64_t(k) * kRow, lanes, sizeof lanes);
      for (int lane = 0; lane < kRow; ++lane) lanes[lane] = first + lane == k ? -code[k] : code[k];
      std::memcpy(rows.s + int64_t(before + k) * kRow, lanes, sizeof lanes);
    }
    levinson(rows.rho, rows.s, rows.f, length, m);
    for (int lane = 0; lane < kRow && first + lane <= n; ++lane) out[first + lane] = ratio(m[lane]);
  }
}

void flips(const int16_t* padded, const int16_t* weight, int n, int count, int step, int16_t* product, int16_t* square) {
  for (int first = 0; first < count; first += 32) {
    int16_t p[32] = {}, q[32] = {};
    for (int k = step; k < n; k += step) {
      const int16_t *up = padded + first + k, *down = padded + first - k;
      const int16_t w = weight[k];
      for (int lane = 0; lane < 32; ++lane) {
        const int16_t t = int16_t(up[lane] + down[lane]);
        p[lane] = int16_t(p[lane] + w * t);
        q[lane] = int16_t(q[lane] + t * t);
      }
    }
    std::memcpy(product + first, p, sizeof p);
    std::memcpy(square + first, q, sizeof q);
  }
}

void pair_flips(const int16_t* padded, const int16_t* sums, int n, int loose_from, int loose_to, int32_t* cost) {
  for (int first = 0; first < n; first += 32) {
    int32_t total[32] = {};
    const int16_t* own = padded + first;
    for (int k = 1; k < n; ++k) {
      const int16_t *up = own + k, *down = own - k;
      const int16_t sum = sums[k], allowed = k >= loose_from && k < loose_to ? 4 : 0;
      for (int lane = 0; lane < 32; ++lane) {
        const int16_t value = int16_t(sum - 2 * own[lane] * (up[lane] + down[lane]));
        const int32_t part = int32_t(value) * value - allowed;
        total[lane] += part > 0 ? part : 0;
      }
    }
    std::memcpy(cost + first, total, sizeof total);
  }
}

void quad_flips(const int16_t* const* rows, const int16_t* halves, int n, uint16_t* level) {
  static constexpr int kTwo[6][2] = {{0, 1}, {2, 3}, {0, 2}, {0, 3}, {1, 2}, {1, 3}};
  uint16_t total[6][32] = {};
  for (int k = 1; k < n; ++k) {
    int16_t t[4][32];
    for (int row = 0; row < 4; ++row) {
      const int16_t *own = rows[row], *up = own + k, *down = own - k;
      for (int lane = 0; lane < 32; ++lane) t[row][lane] = int16_t(own[lane] * (up[lane] + down[lane]));
    }
    const int16_t half = halves[k];
    for (int move = 0; move < 6; ++move) {
      const int16_t *one = t[kTwo[move][0]], *two = t[kTwo[move][1]];
      for (int lane = 0; lane < 32; ++lane) {
        const int16_t value = int16_t(half - one[lane] - two[lane]);
        total[move][lane] = uint16_t(total[move][lane] + uint16_t(value * value));
      }
    }
  }
  // Flipping both ends of one code leaves their product alone, at the lag that is their distance.
  for (int i = 0; i < n / 2; ++i) {
    const int k = n - 1 - 2 * i;
    for (int code = 0; code < 2; ++code) {
      const int16_t *near = rows[2 * code] + i, *far = rows[2 * code + 1] + i;
      const int product = near[0] * far[0];
      const int wrong = halves[k] - near[0] * (near[k] + near[-k]) - far[0] * (far[k] + far[-k]);
      const int right = wrong + 2 * product;
      total[code][i] = uint16_t(total[code][i] + right * right - wrong * wrong);
    }
  }
  std::memcpy(level, total, sizeof total);
}

}  // namespace

extern const SequenceKernels sequence_kernels;
const SequenceKernels sequence_kernels = {&scratch, &sir, &sir_flips, &autocorrelation, &flips, &pair_flips, &quad_flips};

}  // namespace statepool::STATEPOOL_NS
