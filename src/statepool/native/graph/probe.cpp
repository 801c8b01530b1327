#include "probe.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "query.h"
#include "rounds.h"

namespace statepool::graph {
namespace {

constexpr int64_t kTooLong = 2'000'000;  // ns without an answer: the helper has no core

struct Ball {
  alignas(128) std::atomic<int> there{0};
  alignas(128) std::atomic<int> back{0};
};

// Throws every value back until it is -1.
void answer(void* shared, int) {
  Ball& ball = *static_cast<Ball*>(shared);
  ball.back.store(1, std::memory_order_release);
  for (int seen = 0;;) {
    const int thrown = ball.there.load(std::memory_order_acquire);
    if (thrown == -1) return;
    if (thrown == seen) continue;
    seen = thrown;
    ball.back.store(thrown, std::memory_order_release);
  }
}

bool await(const std::atomic<int>& value, int wanted) {
  const int64_t end = now_ns() + kTooLong;
  while (value.load(std::memory_order_acquire) != wanted)
    if (now_ns() > end) return false;
  return true;
}

double median(std::vector<double>& values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Every second entry is new, as when two threads searched the same region.
double merge_one(int rounds) {
  constexpr int kWidth = 100;
  std::vector<double> spent;
  for (int i = 0; i < rounds; ++i) {
    Pool own, other;
    own.reset(kWidth);
    other.reset(kWidth);
    for (int j = 0; j < kWidth; ++j) {
      own.insert(entry_of(static_cast<float>(2 * j), static_cast<uint32_t>(j)));
      other.insert(entry_of(static_cast<float>(j), static_cast<uint32_t>(j % 2 == 0 ? j / 2 : j + kWidth)));
    }
    const int64_t begun = now_ns();
    for (int j = 0; j < kWidth; ++j) own.reopen(other.at(j) | 1);
    spent.push_back(static_cast<double>(now_ns() - begun) / kWidth);
  }
  return median(spent);
}

}  // namespace

Handoffs measure_handoffs(int rounds) {
  std::vector<double> starts, ways, joins;
  for (int i = 0; i < rounds; ++i) {
    Ball ball;
    const int64_t asked = now_ns();
    Crew::Team team(Crew::instance(), 1, &answer, &ball);
    const bool came = await(ball.back, 1);
    if (came) starts.push_back(static_cast<double>(now_ns() - asked));
    constexpr int kThrows = 20;
    const int64_t begun = now_ns();
    bool all = came;
    for (int throws = 2; all && throws < kThrows + 2; ++throws) {
      ball.there.store(throws, std::memory_order_release);
      all = await(ball.back, throws);
    }
    if (all) ways.push_back(static_cast<double>(now_ns() - begun) / (2 * kThrows));
    ball.there.store(-1, std::memory_order_release);
    team.dismiss();
  }
  {
    Rounds empty(2, [](void*, int, int) {}, nullptr);
    const int64_t end = now_ns() + kTooLong;
    while (empty.parts() < 2 && now_ns() < end) pause();
    for (int i = 0; i < rounds && empty.parts() == 2; ++i) {
      const int64_t begun = now_ns();
      empty.run();
      joins.push_back(static_cast<double>(now_ns() - begun));
    }
  }
  return {median(ways), median(joins), median(starts), merge_one(rounds)};
}

}  // namespace statepool::graph
