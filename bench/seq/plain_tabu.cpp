// The yardstick of S6: tabu search for low autocorrelation as one writes it first, tables of products and O(n) per flip.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

int main(int, char** argv) {
  const int n = std::atoi(argv[1]), target = std::atoi(argv[2]);
  std::mt19937 random(std::atoi(argv[3]));
  std::vector<int> s(n), c(n), until(n);
  int best = 1 << 30;
  long long flips = 0;
  while (best > target) {
    for (int& x : s) x = random() & 1 ? 1 : -1;
    std::vector<std::vector<int>> t(n, std::vector<int>(n));
    for (int k = 1; k < n; ++k) {
      c[k] = 0;
      for (int i = 0; i + k < n; ++i) c[k] += t[k][i] = s[i] * s[i + k];
    }
    std::fill(until.begin(), until.end(), 0);
    int local = 1 << 30;
    for (int step = 1, last = 0; step - last <= 8 * n && best > target; ++step) {
      int chosen = -1, least = 1 << 30;
      for (int i = 0; i < n; ++i, ++flips) {
        int energy = 0;
        for (int k = 1; k < n; ++k) {
          const int value = c[k] - 2 * (i + k < n ? t[k][i] : 0) - 2 * (i >= k ? t[k][i - k] : 0);
          energy += value * value;
        }
        if (energy < least && (until[i] <= step || energy < local)) least = energy, chosen = i;
      }
      if (chosen < 0) break;
      for (int k = 1; k < n; ++k) {
        if (chosen + k < n) c[k] -= 2 * t[k][chosen], t[k][chosen] = -t[k][chosen];
        if (chosen >= k) c[k] -= 2 * t[k][chosen - k], t[k][chosen - k] = -t[k][chosen - k];
      }
      until[chosen] = step + n / 50 + 3 + int(random() % (n / 10 + 1));
      if (least < local) local = least, last = step;
      if (local < best) best = local;
    }
  }
  std::printf("%d %lld\n", best, flips);
}
