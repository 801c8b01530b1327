// Sampling over one row: truncation by exact integer masses, the draw by inverse CDF in token-id order.
#include "sample.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "arrays.h"
#include "memory.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace statepool {
namespace {

using Row = Array<const float, 1>;
constexpr float kNone = -std::numeric_limits<float>::infinity();

// Unsigned integers in the order of the floats; both zeros alike.
uint32_t order_key(float x) {
  const float canonical = x + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &canonical, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Some tokens of a row, ids rising. Kept by the calling thread: it only grows.
struct Tokens {
  Buffer<int32_t> id;
  Buffer<float> logit;
  Buffer<uint64_t> weight;
  int64_t count = 0;

  void reserve(int64_t n) {
    id.reserve(static_cast<size_t>(n));
    logit.reserve(static_cast<size_t>(n));
    weight.reserve(static_cast<size_t>(n));
  }
  // Only those for which keep(i) holds, in the same order.
  template <class Keep>
  void filter(Keep&& keep) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (!keep(i)) continue;
      id.data()[kept] = id.data()[i];
      logit.data()[kept] = logit.data()[i];
      weight.data()[kept++] = weight.data()[i];
    }
    count = kept;
  }
};

// Keeps the shortest prefix, by falling logit, whose masses add up to `need`: radix selection, 11 + 11 + 10 bits.
template <class Mass>
void keep_prefix(Tokens& tokens, uint64_t need, Mass&& mass) {
  static thread_local std::vector<uint64_t> histogram;
  const float* logit = tokens.logit.data();
  uint32_t prefix = 0;
  uint64_t above = 0;
  int known = 0;
  for (const int width : {11, 11, 10}) {
    const int shift = 32 - known - width;
    histogram.assign(size_t{1} << width, 0);
    for (int64_t i = 0; i < tokens.count; ++i) {
      const uint32_t key = order_key(logit[i]);
      if (known == 0 || key >> (32 - known) == prefix) histogram[(key >> shift) & ((1u << width) - 1)] += mass(i);
    }
    uint32_t digit = (1u << width) - 1;
    while (digit > 0 && above + histogram[digit] < need) above += histogram[digit--];
    prefix = prefix << width | digit;
    known += width;
  }
  tokens.filter([&](int64_t i) {
    const uint32_t key = order_key(logit[i]);
    if (key != prefix) return key > prefix;
    if (above >= need) return false;
    above += mass(i);
    return true;
  });
}

// The k largest logits. The k-th of them is no smaller than the k-th largest of k or more block maxima, so only tokens
// from there on are looked at twice.
void keep_largest(const float* row, int64_t n, int64_t k, Tokens& tokens) {
  constexpr int64_t kBlock = 256;
  static thread_local std::vector<float> maxima;
  maxima.clear();
  for (int64_t i = 0; i < n; i += kBlock) maxima.push_back(sample_kernels().max(row + i, std::min(kBlock, n - i)));
  float bound = -std::numeric_limits<float>::max();
  if (k <= static_cast<int64_t>(maxima.size())) {
    std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<float>());
    bound = std::max(bound, maxima[static_cast<size_t>(k - 1)]);
  }
  tokens.reserve(n);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    tokens.id.data()[count] = static_cast<int32_t>(i);
    tokens.logit.data()[count] = row[i];
    count += row[i] >= bound;
  }
  tokens.count = count;
  keep_prefix(tokens, static_cast<uint64_t>(std::min(k, count)), [](int64_t) { return uint64_t{1}; });
}

struct RowSum {
  float max;
  double sum;
  // log p of a logit, rounded once.
  float logprob(float logit) const {
    const double shifted = static_cast<double>(logit) - static_cast<double>(max);
    return static_cast<float>(shifted - std::log(sum));
  }
};

RowSum sum_row(const float* row, int64_t n) {
  const float max = sample_kernels().max(row, n);
  return {max, sample_kernels().exp_sum(row, n, max)};
}

int64_t length(const Row& row) {
  require(row.shape(0) > 0, "row: is empty");
  require(row.shape(0) <= size_t{1} << 20, "row: more than 2^20 tokens");
  return static_cast<int64_t>(row.shape(0));
}

uint64_t total_weight(const Tokens& tokens) {
  uint64_t total = 0;
  for (int64_t i = 0; i < tokens.count; ++i) total += tokens.weight.data()[i];
  return total;
}

struct Truncation {
  int64_t top_k;
  double top_p, min_p;
};

// Fills `tokens` with what survives, weighed. False if that is the whole row: then only the weights are filled.
bool truncate(const float* row, int64_t n, float max, float inverse_temperature, const Truncation& by, Tokens& tokens) {
  const auto weigh = sample_kernels().weigh;
  const auto least = static_cast<uint64_t>(std::ceil(by.min_p * 0x1p42));
  const bool few = by.top_k > 0 && by.top_k < n;
  if (few) {
    keep_largest(row, n, by.top_k, tokens);
    weigh(tokens.logit.data(), tokens.count, max, inverse_temperature, tokens.weight.data());
  } else {
    tokens.reserve(n);
    tokens.count = n;
    weigh(row, n, max, inverse_temperature, tokens.weight.data());
  }
  const uint64_t total = total_weight(tokens);
  const auto share = static_cast<uint64_t>(std::ceil(by.top_p * static_cast<double>(total)));
  const uint64_t need = std::clamp<uint64_t>(share, 1, total);
  if (!few) {
    // All tokens lighter than `light` together weigh no more than what top_p drops: they need no second look.
    const uint64_t light = (total - need) / static_cast<uint64_t>(n);
    if (by.top_p >= 1.0 && least == 0) return false;
    const uint64_t bound = std::max<uint64_t>({by.top_p < 1.0 ? light : 0, least, 1});
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t weight = tokens.weight.data()[i];
      tokens.id.data()[count] = static_cast<int32_t>(i);
      tokens.logit.data()[count] = row[i];
      tokens.weight.data()[count] = weight;
      count += weight >= bound;
    }
    tokens.count = count;
  }
  const uint64_t* weights = tokens.weight.data();
  if (by.top_p < 1.0) keep_prefix(tokens, need, [&](int64_t i) { return weights[i]; });
  if (least > 0) tokens.filter([&](int64_t i) { return weights[i] >= least; });
  return true;
}

std::tuple<int64_t, double, double> sample(Row array, double temperature, int64_t top_k, double top_p, double min_p,
                                           double u) {
  const int64_t n = length(array);
  const float* row = array.data();
  require(temperature >= 0.0, "temperature: must not be negative");
  require(top_p > 0.0, "top_p: must be positive");
  require(min_p >= 0.0 && min_p <= 1.0, "min_p: must be between 0 and 1");
  require(u >= 0.0 && u < 1.0, "u: must be in [0, 1)");
  const RowSum whole = sum_row(row, n);
  require(std::isfinite(whole.max), "row: no token is left to choose, or a logit is infinite");
  if (temperature == 0.0) {
    int64_t best = 0;
    while (row[best] != whole.max) ++best;
    return {best, whole.logprob(row[best]), 0.0};
  }
  static thread_local Tokens tokens;
  const float inverse = static_cast<float>(std::min(1.0 / temperature, 1e30));
  const bool some = truncate(row, n, whole.max, inverse, {top_k, top_p, min_p}, tokens);
  const uint64_t* weights = tokens.weight.data();
  const uint64_t total = total_weight(tokens);
  const auto bits = static_cast<uint64_t>(u * 0x1p53);
  const auto target = static_cast<uint64_t>(static_cast<unsigned __int128>(bits) * total >> 53);
  int64_t i = 0;
  for (uint64_t below = weights[0]; below <= target; below += weights[i]) ++i;
  const double share = static_cast<double>(weights[i]) / static_cast<double>(total);
  const int64_t token = some ? tokens.id.data()[i] : i;
  return {token, whole.logprob(row[token]), std::log(share)};
}

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> owned(std::vector<T>&& values) {
  auto* moved = new std::vector<T>(std::move(values));
  nb::capsule owner(moved, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(moved->data(), {moved->size()}, owner);
}

auto top_logprobs(Row array, int64_t k) {
  const int64_t n = length(array);
  const float* row = array.data();
  std::vector<int32_t> ids;
  std::vector<float> values;
  {
    nb::gil_scoped_release release;
    static thread_local Tokens tokens;
    if (k > 0) {
      keep_largest(row, n, k, tokens);
      ids.assign(tokens.id.data(), tokens.id.data() + tokens.count);
      std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
      const RowSum whole = sum_row(row, n);
      for (const int32_t id : ids) values.push_back(whole.logprob(row[id]));
    }
  }
  return std::pair(owned(std::move(ids)), owned(std::move(values)));
}

double logprob_of(Row row, int64_t token) {
  const int64_t n = length(row);
  require(token >= 0 && token < n, "token: id outside the row");
  return sum_row(row.data(), n).logprob(row.data()[token]);
}

void apply_bitmask(Array<float, 1> row, Array<const uint32_t, 1> mask) {
  const int64_t n = static_cast<int64_t>(row.shape(0)), bits = static_cast<int64_t>(mask.shape(0)) * 32;
  for (int64_t i = 0; i < n; ++i)
    if (i >= bits || !(mask.data()[i / 32] >> (i % 32) & 1u)) row.data()[i] = kNone;
}

struct Counter {
  uint32_t word[4];
};

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; 2011).
Counter philox(Counter c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c.word[0], p1 = uint64_t{0xCD9E8D57u} * c.word[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.word[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.word[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

double philox_uniform(uint64_t seed, uint32_t index, uint64_t position) {
  const Counter c = philox({{static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), index, 0}},
                           static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return static_cast<double>((static_cast<uint64_t>(c.word[1]) << 32 | c.word[0]) >> 11) * 0x1p-53;
}

}  // namespace
}  // namespace statepool

void bind_sample(nb::module_& m) {
  using namespace statepool;
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def("sample", &sample, "row"_a.noconvert(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "u"_a, Release(),
        "(token, raw logprob, logprob as sampled) of a row float32 [V]; temperature 0 takes the first largest logit. "
        "top_k 0 and top_p 1 are off; u in [0, 1) decides. Raises ValueError if every token is masked.");
  m.def("top_logprobs", &top_logprobs, "row"_a.noconvert(), "k"_a,
        "Ids (int32) and log-probabilities (float32) of the k likeliest tokens, best first, equals by id.");
  m.def("logprob_of", &logprob_of, "row"_a.noconvert(), "token"_a, Release(), "Log-probability of one token.");
  m.def("apply_bitmask", &apply_bitmask, "row"_a.noconvert(), "mask"_a.noconvert(), Release(),
        "row[i] = -inf, in place, where bit i of mask (uint32 words, lowest bit first) is 0 or missing.");
  m.def("philox_uniform", &philox_uniform, "seed"_a, "index"_a, "position"_a, Release(),
        "A uniform number in [0, 1) with 53 bits: Philox4x32-10, key seed, counter (position, index, 0).");
}
