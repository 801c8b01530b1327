#include "probe.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "query.h"
#include "rounds.h"

namespace statepool::graph {
namespace {

constexpr double kPause = 100'000;           // ns that no list of distances takes
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

constexpr int kLetter = 16;  // about as many ids as an expansion meets

// Each part a slice, as the engine `edge` deals distances out, but without their rows.
void copy(void* shared, int part, int parts) {
  Hits& letter = *static_cast<Hits*>(shared);
  for (int j = letter.count * part / parts; j < letter.count * (part + 1) / parts; ++j)
    letter.distances[j] = static_cast<float>(letter.ids[j] + 1);
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
    Hits letter;
    Rounds empty(2, &copy, &letter);
    const int64_t end = now_ns() + kTooLong;
    while (empty.parts() < 2 && now_ns() < end) pause();
    for (int i = 0; i < rounds && empty.parts() == 2; ++i) {
      letter.count = kLetter;
      for (int j = 0; j < kLetter; ++j) letter.ids[j] = static_cast<uint32_t>(i + j);
      const int64_t begun = now_ns();
      empty.run();
      float sum = 0;
      for (int j = 0; j < kLetter; ++j) sum += letter.distances[j];
      joins.push_back(sum > 0 ? static_cast<double>(now_ns() - begun) : 0.0);
    }
  }
  return {median(ways), median(joins), median(starts), merge_one(rounds)};
}

Steps measure_steps(const Segment& segment, const float* queries, size_t count, int width) {
  const Space& space = segment.space;
  Visited visited;
  std::vector<float> query(static_cast<size_t>(space.dims));
  Lane lane;
  constexpr int kLooks = 1000;
  const int64_t looked = now_ns();
  for (int i = 0; i < kLooks; ++i) now_ns();
  const double look = static_cast<double>(now_ns() - looked) / kLooks;
  double hops = 0, meets = 0, inserts = 0, lists = 0, rows = 0, squares = 0, spent = 0, products = 0;
  for (size_t i = 0; i < count; ++i) {
    space.prepare(queries + i * static_cast<size_t>(space.dim), query.data(), true);
    visited.reset(segment.size() + 1);
    const Walk walk{segment, query.data(), visited};
    lane.begin(width, width);
    walk.enter(0, 1, lane.hits);
    keep(lane, kNoBound);
    for (;;) {
      const int64_t begun = now_ns();
      const uint32_t node = pick(walk, lane, kNoBound);
      if (node == kNone) break;
      walk.meet(node, lane.hits);
      const int64_t met = now_ns();
      walk.measure(lane.hits, 0, lane.hits.count);
      const int64_t measured = now_ns();
      keep(lane, kNoBound);
      const int64_t kept = now_ns();
      ++hops;
      meets += static_cast<double>(met - begun) - look;
      if (lane.hits.count == 0) continue;
      const double time = static_cast<double>(measured - met) - look, n = lane.hits.count;
      if (time > kPause) continue;  // somebody else had the core
      ++lists;
      rows += n;
      squares += n * n;
      spent += time;
      products += n * time;
      inserts += static_cast<double>(kept - measured) - look;
    }
  }
  const double spread = lists * squares - rows * rows;
  if (spread <= 0) return {0, 0, 0, 0};
  const double row = std::max(0.0, (lists * products - rows * spent) / spread);
  return {std::max(0.0, meets / hops), std::max(0.0, (spent - row * rows) / lists), row, std::max(0.0, inserts / rows)};
}


namespace {

// One part of `parts` of a search that shares nothing but tags.
void search(const Walk& walk, Lane& lane, int width, int part, int parts) {
  lane.begin(width, width);
  walk.enter(part, parts, lane.hits);
  lane.counts.distances += static_cast<uint64_t>(lane.hits.count);
  keep(lane, kNoBound);
  for (uint32_t node = pick(walk, lane, kNoBound); node != kNone; node = pick(walk, lane, kNoBound))
    visit(walk, lane, node, kNoBound);
}

// Another thread that searches for the same queries at the same time, over the same tags.
struct Companion {
  const Segment& segment;
  const float* queries;
  int width;
  Visited& visited;
  alignas(128) std::atomic<size_t> wanted{0};  // 0: none yet
  alignas(128) std::atomic<size_t> done{0};
  std::atomic<bool> there{false};

  static constexpr size_t kEnough = ~size_t{0};

  static void run(void* shared, int) {
    Companion& self = *static_cast<Companion*>(shared);
    std::vector<float> query(static_cast<size_t>(self.segment.space.dims));
    Lane lane;
    const Walk walk{self.segment, query.data(), self.visited};
    self.there.store(true, std::memory_order_release);
    for (size_t seen = 0;;) {
      const size_t wanted = self.wanted.load(std::memory_order_acquire);
      if (wanted == kEnough) return;
      if (wanted == seen) continue;
      seen = wanted;
      const float* raw = self.queries + (seen - 1) * static_cast<size_t>(self.segment.space.dim);
      self.segment.space.prepare(raw, query.data(), true);
      search(walk, lane, self.width, 1, 2);
      self.done.store(seen, std::memory_order_release);
    }
  }
};

}  // namespace

Beside measure_beside(const Segment& segment, const float* queries, size_t count, int width) {
  const Space& space = segment.space;
  std::vector<float> query(static_cast<size_t>(space.dims));
  Visited visited;
  Lane lanes[2];
  double spent[2] = {};
  const Walk walk{segment, query.data(), visited};
  Companion companion{segment, queries, width, visited};
  Crew::Team team(Crew::instance(), 1, &Companion::run, &companion);
  const int64_t end = now_ns() + kTooLong;
  while (!companion.there.load(std::memory_order_acquire) && now_ns() < end) pause();
  const bool came = companion.there.load(std::memory_order_acquire);
  for (const size_t both : {size_t{0}, size_t{1}}) {
    for (size_t i = 0; came && i < count; ++i) {
      space.prepare(queries + i * static_cast<size_t>(space.dim), query.data(), true);
      visited.reset(segment.size() + 1);
      if (both) companion.wanted.store(i + 1, std::memory_order_release);
      const int64_t begun = now_ns();
      search(walk, lanes[both], width, 0, both ? 2 : 1);
      spent[both] += static_cast<double>(now_ns() - begun);
      Patience patience;
      while (both && companion.done.load(std::memory_order_acquire) != i + 1) patience.wait();
    }
  }
  companion.wanted.store(Companion::kEnough, std::memory_order_release);
  team.dismiss();
  const Counts &alone = lanes[0].counts, &beside = lanes[1].counts;
  return {spent[0], static_cast<double>(alone.hops), static_cast<double>(alone.distances),
          spent[1], static_cast<double>(beside.hops), static_cast<double>(beside.distances)};
}

}  // namespace statepool::graph
