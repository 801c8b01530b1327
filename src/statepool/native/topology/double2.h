// Numbers of two doubles, about 32 digits, by Dekker's and Knuth's exact sums and products.
#pragma once

#include <cmath>

namespace statepool::topology {

struct Double2 {
  double hi = 0.0, lo = 0.0;
  Double2() = default;
  Double2(double value) : hi(value) {}  // NOLINT: a double is one
  Double2(double high, double low) : hi(high), lo(low) {}
};

inline Double2 normal(double a, double b) {
  const double s = a + b;
  return {s, b - (s - a)};
}

inline Double2 exact_sum(double a, double b) {
  const double s = a + b, v = s - a;
  return {s, (a - (s - v)) + (b - v)};
}

inline Double2 exact_product(double a, double b) {
  constexpr double split = 134217729.0;  // 2^27 + 1
  const double p = a * b, ta = split * a, tb = split * b;
  const double ah = ta - (ta - a), al = a - ah, bh = tb - (tb - b), bl = b - bh;
  return {p, ((ah * bh - p) + ah * bl + al * bh) + al * bl};
}

inline Double2 operator+(Double2 a, Double2 b) {
  Double2 s = exact_sum(a.hi, b.hi);
  const Double2 t = exact_sum(a.lo, b.lo);
  s = normal(s.hi, s.lo + t.hi);
  return normal(s.hi, s.lo + t.lo);
}
inline Double2 operator-(Double2 a) { return {-a.hi, -a.lo}; }
inline Double2 operator-(Double2 a, Double2 b) { return a + -b; }
inline Double2 operator*(Double2 a, Double2 b) {
  Double2 p = exact_product(a.hi, b.hi);
  return normal(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}
inline Double2 operator/(Double2 a, Double2 b) {
  const double q = a.hi / b.hi;
  const Double2 r = a - Double2(q) * b;
  const double q2 = r.hi / b.hi;
  const Double2 r2 = r - Double2(q2) * b;
  return normal(q, q2) + Double2(r2.hi / b.hi);
}
inline Double2 root(Double2 a) {
  if (a.hi <= 0.0) return {};
  const double x = std::sqrt(a.hi);
  const Double2 r = a - Double2(x) * Double2(x);
  return normal(x, r.hi / (2.0 * x));
}
inline Double2 absolute(Double2 a) { return a.hi < 0.0 ? -a : a; }

}  // namespace statepool::topology
