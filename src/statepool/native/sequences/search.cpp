#include "search.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels.h"

namespace statepool::sequences {
namespace {

// splitmix64: a round's numbers follow from the seed and the round alone.
struct Random {
  uint64_t state;
  Random(uint64_t seed, int64_t round) : state(seed * 0xd1342543de82ef95ull + uint64_t(round) * 0x2545f4914f6cdd1dull + 1) { next(); }
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  int below(int bound) { return int((next() >> 32) * uint64_t(bound) >> 32); }
  double unit() { return double(next() >> 11) * 0x1p-53; }
};

// A code between zeros, as the kernels read it.
struct Padded {
  int n;
  std::vector<int16_t> row;
  explicit Padded(int n) : n(n), row(3 * n + 64) {}
  int16_t* begin() { return row.data() + n; }
  int16_t& operator[](int i) { return row[n + i]; }
};

void random_signs(Padded& code, Random& random) {
  for (int i = 0; i < code.n; ++i) code[i] = random.next() >> 63 ? 1 : -1;
}

void correlate(Padded& code, std::vector<int16_t>& rho) {
  for (int k = 0; k < code.n; ++k) {
    int sum = 0;
    for (int i = 0; i + k < code.n; ++i) sum += code[i] * code[i + k];
    rho[k] = int16_t(sum);
  }
}

// Adds to `rho` what flipping symbol i changes; the flip itself is the caller's, afterwards.
void change(Padded& code, int i, std::vector<int16_t>& rho) {
  const int16_t twice = int16_t(2 * code[i]);
  for (int k = 1; k < code.n; ++k) rho[k] = int16_t(rho[k] - twice * (code[i + k] + code[i - k]));
}

// The one or two symbols that a move flips; -1 for none.
using Touched = std::array<int, 2>;

int round_up(int n) { return (n + 31) / 32 * 32; }

// Energy of one code. In the skew-symmetric half, symbol c - j is (-1)^j times symbol c + j about the centre c: only even
// lags count, a move flips both, and both change every lag but their own distance in the same way.
class Energy {
 public:
  using Cost = int32_t;
  Energy(int n, bool skew)
      : code_(n), rho_(n), product_(round_up(n)), square_(round_up(n)), n_(n), centre_(skew ? n / 2 : 0), skew_(skew) {}
  int moves() const { return n_ - centre_; }
  int shortest_tenure() const { return n_ / 50 + 3; }
  int tenure_spread() const { return n_ / 10 + 1; }
  Cost start(Random& random) {
    random_signs(code_, random);
    for (int j = 1; skew_ && j <= centre_; ++j) code_[centre_ - j] = int16_t(j % 2 ? -code_[centre_ + j] : code_[centre_ + j]);
    correlate(code_, rho_);
    energy_ = 0;
    for (int k = 1; k < n_; ++k) energy_ += rho_[k] * rho_[k];
    return energy_;
  }
  void costs(Cost* cost) {
    int16_t* from = code_.begin() + centre_;
    sequence_kernels().flips(from, rho_.data(), n_, moves(), skew_ ? 2 : 1, product_.data(), square_.data());
    if (!skew_) {
      for (int i = 0; i < n_; ++i) cost[i] = energy_ - 4 * code_[i] * product_[i] + 4 * square_[i];
      return;
    }
    cost[0] = energy_ - 4 * from[0] * product_[0] + 4 * square_[0];
    for (int j = 1; j <= centre_; ++j) {
      const int i = centre_ + j, k = 2 * j;
      const int t = code_[i] * (code_[i + k] + code_[i - k]), own = code_[i] * code_[i - k];
      // lag k loses twice the term both share; every other even lag changes by 2 t
      const int products = 2 * code_[i] * product_[j] - 2 * rho_[k] * own;
      const int squares = 4 * square_[j] - 4 * t * t + (2 * t - 2 * own) * (2 * t - 2 * own);
      cost[j] = energy_ - 4 * products + 4 * squares;
    }
  }
  void apply(int move, Cost cost) {
    flip(centre_ + move);
    if (skew_ && move) flip(centre_ - move);
    energy_ = cost;
  }
  void write(int8_t* to) { std::copy_n(code_.begin(), n_, to); }
  int symbols() const { return n_; }
  Touched touched(int move) const { return {centre_ + move, skew_ && move ? centre_ - move : -1}; }

 private:
  void flip(int i) {
    change(code_, i, rho_);
    code_[i] = int16_t(-code_[i]);
  }
  Padded code_;
  std::vector<int16_t> rho_, product_, square_;
  int n_, centre_;
  bool skew_;
  Cost energy_ = 0;
};

class Sir {
 public:
  using Cost = float;
  Sir(int n, int length, double ridge)
      : code_(n), ratios_(n + 1), scratch_(sequence_kernels().scratch(length) / 8 + 1), length_(length), ridge_(float(ridge)) {}
  int moves() const { return int(code_.size()); }
  int shortest_tenure() const { return 2; }
  int tenure_spread() const { return moves() / 6 + 2; }
  Cost start(Random& random) {
    const int n = moves();
    const double rate = 0.3 + 0.9 * random.unit(), phase = 6.283185307179586 * random.unit();
    const bool chirp = random.below(3) != 0;
    for (int i = 0; i < n; ++i) {
      const double angle = 3.141592653589793 * rate * i * i / n + phase;
      code_[i] = chirp ? (std::cos(angle) < 0 ? -1 : 1) : (random.next() >> 63 ? 1 : -1);
    }
    evaluate();
    return value(ratios_[n]);
  }
  void costs(Cost* cost) {
    evaluate();
    for (int i = 0; i < moves(); ++i) cost[i] = value(ratios_[i]);
  }
  void apply(int move, Cost) { code_[move] = int8_t(-code_[move]); }
  void write(int8_t* to) { std::copy(code_.begin(), code_.end(), to); }
  int symbols() const { return moves(); }
  Touched touched(int move) const { return {move, -1}; }

 private:
  static Cost value(float ratio) { return ratio > 0 ? -ratio : 0.0f; }  // NaN: single precision cannot tell
  void evaluate() { sequence_kernels().sir_flips(code_.data(), moves(), length_, ridge_, scratch_.data(), ratios_.data()); }
  std::vector<int8_t> code_;
  std::vector<float> ratios_;
  std::vector<double> scratch_;
  int length_;
  float ridge_;
};

class Pair {
 public:
  using Cost = int32_t;
  Pair(int n, int loose_from, int loose_to)
      : a_(n), b_(n), sums_(n), other_(n), scratch_(round_up(n)), n_(n), from_(loose_from), to_(loose_to) {}
  int moves() const { return 2 * n_; }
  int shortest_tenure() const { return n_ / 10 + 2; }
  int tenure_spread() const { return n_ / 4 + 2; }
  Cost start(Random& random) {
    random_signs(a_, random);
    random_signs(b_, random);
    correlate(a_, sums_);
    correlate(b_, other_);
    Cost cost = 0;
    for (int k = 1; k < n_; ++k) {
      sums_[k] = int16_t(sums_[k] + other_[k]);
      cost += std::max(0, sums_[k] * sums_[k] - (k >= from_ && k < to_ ? 4 : 0));
    }
    return cost;
  }
  void costs(Cost* cost) {
    sequence_kernels().pair_flips(a_.begin(), sums_.data(), n_, from_, to_, scratch_.data());
    std::copy_n(scratch_.data(), n_, cost);
    sequence_kernels().pair_flips(b_.begin(), sums_.data(), n_, from_, to_, scratch_.data());
    std::copy_n(scratch_.data(), n_, cost + n_);
  }
  void apply(int move, Cost) {
    Padded& code = move < n_ ? a_ : b_;
    const int i = move % n_;
    change(code, i, sums_);
    code[i] = int16_t(-code[i]);
  }
  void write(int8_t* to) {
    std::copy_n(a_.begin(), n_, to);
    std::copy_n(b_.begin(), n_, to + n_);
  }
  int symbols() const { return 2 * n_; }
  Touched touched(int move) const { return {move, -1}; }

 private:
  Padded a_, b_;
  std::vector<int16_t> sums_, other_;
  std::vector<int32_t> scratch_;
  int n_, from_, to_;
};

// Pairs with the right remainders. The sum S(k) of 2 (n - k) signs is that many less twice the negative ones, so S(k) modulo 4
// is a product of signs; dividing those of neighbouring lags leaves q(i) = a(i) a(n-1-i) b(i) b(n-1-i), which must be -1, or
// +1 at i = 0 where lag n - 1 is loose. Flipping two of the four keeps q. The cost is then the sum of squares alone, less 4
// per loose lag: S is 2 modulo 4 there, never 0.
class Quads {
 public:
  using Cost = int32_t;
  Quads(int n, int loose_from, int loose_to)
      : rows_{Padded(n), Padded(n), Padded(n), Padded(n)}, sums_(n), halves_(n), n_(n), loose_(loose_to - loose_from),
        first_(loose_from < loose_to && loose_to == n ? 1 : -1) {}
  int moves() const { return 6 * (n_ / 2) + 2 * (n_ % 2); }
  int shortest_tenure() const { return n_ / 6 + 2; }
  int tenure_spread() const { return n_ / 2 + 2; }
  Cost start(Random& random) {
    random_signs(rows_[0], random);
    random_signs(rows_[2], random);
    for (int i = 0; i < n_ / 2; ++i)
      if (rows_[0][i] * rows_[0][n_ - 1 - i] * rows_[2][i] * rows_[2][n_ - 1 - i] != (i ? -1 : first_))
        rows_[2][i] = int16_t(-rows_[2][i]);
    for (int code : {0, 2})
      for (int i = 0; i < n_; ++i) rows_[code + 1][n_ - 1 - i] = rows_[code][i];
    std::vector<int16_t> other(n_);
    correlate(rows_[0], sums_);
    correlate(rows_[2], other);
    Cost level = 0;
    for (int k = 1; k < n_; ++k) {
      sums_[k] = int16_t(sums_[k] + other[k]);
      level += sums_[k] * sums_[k];
    }
    return level - 4 * loose_;
  }
  void costs(Cost* cost) {
    const int16_t* rows[4] = {rows_[0].begin(), rows_[1].begin(), rows_[2].begin(), rows_[3].begin()};
    for (int k = 1; k < n_; ++k) halves_[k] = int16_t(sums_[k] / 2);
    sequence_kernels().quad_flips(rows, halves_.data(), n_, level_);
    const int half = n_ / 2;
    for (int move = 0; move < 6; ++move)
      for (int i = 0; i < half; ++i) cost[move * half + i] = 4 * (level_[32 * move + i] - loose_);
    for (int code = 0; n_ % 2 && code < 2; ++code) {
      Padded& row = rows_[2 * code];
      Cost level = 0;
      for (int k = 1; k < n_; ++k) {
        const int value = sums_[k] - 2 * row[half] * (row[half + k] + row[half - k]);
        level += value * value;
      }
      cost[6 * half + code] = level - 4 * loose_;
    }
  }
  void apply(int move, Cost) {
    const int half = n_ / 2;
    if (move >= 6 * half) return flip(2 * (move - 6 * half), half);
    for (int row : kTwo[move / half]) flip(row, move % half);
  }
  void write(int8_t* to) {
    std::copy_n(rows_[0].begin(), n_, to);
    std::copy_n(rows_[2].begin(), n_, to + n_);
  }
  int symbols() const { return 2 * n_; }
  Touched touched(int move) const {
    const int half = n_ / 2;
    if (move >= 6 * half) return {n_ * (move - 6 * half) + half, -1};
    const int i = move % half;
    Touched symbols;
    for (int side = 0; side < 2; ++side) {
      const int row = kTwo[move / half][side];
      symbols[side] = n_ * (row / 2) + (row % 2 ? n_ - 1 - i : i);
    }
    return symbols;
  }

 private:
  void flip(int row, int i) {
    change(rows_[row], i, sums_);
    rows_[row][i] = int16_t(-rows_[row][i]);
    Padded& mirror = rows_[row ^ 1];
    mirror[n_ - 1 - i] = int16_t(-mirror[n_ - 1 - i]);
  }
  static constexpr int kTwo[6][2] = {{0, 1}, {2, 3}, {0, 2}, {0, 3}, {1, 2}, {1, 3}};
  Padded rows_[4];
  std::vector<int16_t> sums_, halves_;
  uint16_t level_[6 * 32];
  int n_, loose_, first_;
};

// The places a walk has been to, by open addressing: a table that fits a cache. An empty slot is 0, the place where every
// walk starts: it is held without being stored.
class Visited {
 public:
  void clear() {
    std::fill(slots_.begin(), slots_.end(), 0);
    used_ = 0;
  }
  bool holds(uint64_t place) const { return slots_[find(place)] == place; }
  void insert(uint64_t place) {
    if (2 * ++used_ > slots_.size()) {
      std::vector<uint64_t> old(2 * slots_.size());
      old.swap(slots_);
      for (uint64_t each : old)
        if (each) slots_[find(each)] = each;
    }
    slots_[find(place)] = place;
  }

 private:
  size_t find(uint64_t place) const {
    size_t slot = place & (slots_.size() - 1);
    while (slots_[slot] && slots_[slot] != place) slot = (slot + 1) & (slots_.size() - 1);
    return slot;
  }
  std::vector<uint64_t> slots_ = std::vector<uint64_t>(1024);
  size_t used_ = 0;
};

template <class Problem>
Found search(Problem problem, const Plan& plan) {
  using Cost = typename Problem::Cost;
  const int moves = problem.moves();
  std::vector<Cost> costs(round_up(moves) + 32);
  std::vector<int64_t> free_at(moves);
  // A place is the sum modulo 2 of the keys of the symbols flipped since the round began.
  std::vector<uint64_t> symbol_keys(problem.symbols()), keys(moves);
  Random keyring(0x5eed, moves);
  for (uint64_t& key : symbol_keys) key = keyring.next();
  for (int move = 0; move < moves; ++move)
    for (int symbol : problem.touched(move))
      if (symbol >= 0) keys[move] ^= symbol_keys[symbol];
  Visited visited;
  Found found;
  found.code.resize(problem.symbols());
  found.cost = std::numeric_limits<double>::infinity();
  for (int64_t round = plan.first; round < plan.first + plan.rounds; ++round) {
    Random random(plan.seed, round);
    Cost here = problem.start(random), best = here;
    auto keep = [&] {
      if (double(here) < found.cost) {
        found.cost = double(here);
        found.round = round;
        problem.write(found.code.data());
      }
    };
    keep();
    ++found.rounds;
    ++found.evaluations;
    std::fill(free_at.begin(), free_at.end(), 0);
    visited.clear();
    uint64_t place = 0;
    int64_t last = 0;
    for (int64_t step = 1; step - last <= plan.patience && found.cost > plan.target; ++step) {
      problem.costs(costs.data());
      found.evaluations += moves;
      int chosen = -1, equals = 0;
      for (int i = 0; i < moves; ++i) {
        if (chosen >= 0 && costs[i] > costs[chosen]) continue;
        if (plan.method == Method::tabu ? free_at[i] > step && costs[i] >= best : visited.holds(place ^ keys[i])) continue;
        // of equal moves one at random, each as likely as the other
        equals = chosen >= 0 && costs[i] == costs[chosen] ? equals + 1 : 1;
        if (equals == 1 || random.below(equals) == 0) chosen = i;
      }
      if (chosen < 0) break;
      here = costs[chosen];
      problem.apply(chosen, here);
      if (plan.method == Method::tabu) {
        free_at[chosen] = step + 1 + problem.shortest_tenure() + random.below(problem.tenure_spread());
      } else {
        place ^= keys[chosen];
        visited.insert(place);
      }
      if (here < best) {
        best = here;
        if (plan.method == Method::tabu) last = step;
        keep();
      }
    }
    if (found.cost <= plan.target) break;
  }
  return found;
}

}  // namespace

Found search_energy(int n, bool skew, const Plan& plan) { return search(Energy(n, skew), plan); }
Found search_sir(int n, int length, double ridge, const Plan& plan) { return search(Sir(n, length, ridge), plan); }
Found search_pair(int n, int loose_from, int loose_to, const Plan& plan) {
  if (n <= kLongestQuads) return search(Quads(n, loose_from, loose_to), plan);
  return search(Pair(n, loose_from, loose_to), plan);
}

}  // namespace statepool::sequences
