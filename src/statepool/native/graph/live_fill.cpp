// Many rows at once into an empty live segment, before anybody else has it: the graph of a build, with keepers.
#include <algorithm>

#include "build.h"
#include "live.h"

namespace statepool::graph {

void LiveSegment::fill(const float* rows, const uint64_t* labels, size_t count, int threads) {
  if (slots_.load(std::memory_order_acquire) != 0) throw std::logic_error("fill: the segment has rows already");
  if (count > capacity()) throw FullError("the segment is full");
  segment_.append(prepare(rows, count).data(), count);
  slots_.store(count, std::memory_order_release);
  for (uint32_t i = 0; i < count; ++i) {
    if (!names_.try_emplace(labels[i], i).second) throw TakenError(std::to_string(labels[i]));
    node(i).label.store(labels[i], std::memory_order_relaxed);
    node(i).keeper.store(kNone, std::memory_order_relaxed);
    node(i).state.store(kComing, std::memory_order_release);
  }
  BuildOptions options;
  options.alpha = 1.0f;  // as a base: half the work, and what changes later is pruned by alpha_ in any case
  options.window = window_;
  options.threads = threads;
  build(segment_, options);
  entries_ = segment_.entries;
  keep_all();
  // What those that lead to it have no room for goes to the nearest that has. All who are kept already hang on an entry.
  for (uint32_t i = 0; i < count; ++i) {
    if (kept(i)) continue;
    const Pin scratch(*this);
    explore(segment_.floats(i, scratch->from.data()), *scratch);
    if (std::none_of(scratch->candidates.begin(), scratch->candidates.end(),
                     [&](Entry c) { return kept(id_of(c)) && adopt(id_of(c), i, *scratch); }))
      root(i);
  }
  for (uint32_t i = 0; i < count; ++i) node(i).state.store(kLive, std::memory_order_release);
  linked_.store(count, std::memory_order_relaxed);
  live_.store(count, std::memory_order_release);
}

// From the entries on in breadth, every row is kept by the first that reaches it and has room: the chains end at an entry.
void LiveSegment::keep_all() {
  std::vector<uint32_t> reached = entries_;
  for (const uint32_t entry : reached) node(entry).keeper.store(kRoot, std::memory_order_release);
  for (size_t next = 0; next < reached.size(); ++next) {
    const uint32_t* links = segment_.links(reached[next]);
    int kept = 0;
    for (int k = 0; k < segment_.degree && links[k] != kNone && 2 * kept < segment_.degree; ++k) {
      if (this->kept(links[k])) continue;
      node(links[k]).keeper.store(reached[next], std::memory_order_release);
      reached.push_back(links[k]);
      ++kept;
    }
  }
}

}  // namespace statepool::graph
