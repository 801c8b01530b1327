// Deleted rows leave the graph: what they kept gets other keepers, what they linked is linked without them.
#include <algorithm>

#include "live.h"

namespace statepool::graph {

size_t LiveSegment::repair() {
  const std::unique_lock<std::mutex> alone(repair_mutex_, std::try_to_lock);
  if (!alone.owns_lock()) return 0;
  std::vector<uint32_t> gone;
  std::vector<bool> dying(slots_.load(std::memory_order_acquire));
  for (uint32_t i = 0; i < dying.size(); ++i) {
    dying[i] = state(i) == kDead;
    if (dying[i]) gone.push_back(i);
  }
  if (gone.empty()) return 0;
  const auto goes = [&](uint32_t i) { return i < dying.size() && dying[i]; };

  // An insertion that began before the deletions may still link to a dying row. One that begins later does not.
  wait_for_others();
  const size_t count = slots_.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < count; ++i) {
    if (goes(i) || state(i) == kFree || !goes(node(i).keeper.load(std::memory_order_acquire))) continue;
    const Pin scratch(*this);
    rekeep(i, *scratch, dying);
  }
  for (uint32_t i = 0; i < count; ++i) {
    if (goes(i) || state(i) == kFree) continue;
    const Pin scratch(*this);
    bridge(i, *scratch, dying);
  }
  even_out(count);
  {
    const std::lock_guard<std::mutex> lock(entries_mutex_);
    std::erase_if(entries_, goes);
  }

  // Searches that began earlier may still hold a dying row.
  turnover_.fetch_add(1, std::memory_order_release);
  wait_for_others();
  for (const uint32_t slot : gone) node(slot).state.store(kFree, std::memory_order_release);
  dead_.fetch_sub(gone.size(), std::memory_order_release);
  const std::lock_guard<std::mutex> lock(slots_mutex_);
  free_.insert(free_.end(), gone.begin(), gone.end());
  return gone.size();
}

// Whether the chain of keepers from `from` passes `child`; it may end at a dying row, whose own children move later.
bool LiveSegment::chain_meets(uint32_t from, uint32_t child, const std::vector<bool>& dying) const {
  while (from != kRoot && from != kNone && !(from < dying.size() && dying[from])) {
    if (from == child) return true;
    from = node(from).keeper.load(std::memory_order_acquire);
  }
  return false;
}

// Another keeper for `child`: near, and not kept by it in the end. Insertions only add ends to chains, so a chain that was
// looked at stays as it was.
void LiveSegment::rekeep(uint32_t child, Scratch& scratch, const std::vector<bool>& dying) {
  explore(segment_.floats(child, scratch.from.data()), scratch);
  const std::vector<Entry> near = scratch.candidates;
  const auto take = [&](uint32_t parent) {
    return parent != child && usable(parent) && !chain_meets(parent, child, dying) && adopt(parent, child, scratch);
  };
  for (const Entry candidate : near)
    if (take(id_of(candidate))) return;
  if (scratch.entries.size() >= kMostEntries)
    for (uint32_t parent = 0; parent < scratch.limit; ++parent)
      if (take(parent)) return;
  root(child);
}

// The owner's list without dying rows: their neighbours stand in for them.
void LiveSegment::bridge(uint32_t owner, Scratch& scratch, const std::vector<bool>& dying) {
  const auto goes = [&](uint32_t i) { return i < dying.size() && dying[i]; };
  uint32_t links[kMostDegree], further[kMostDegree];
  int count = copy_links(owner, links);
  if (std::none_of(links, links + count, goes)) return;
  const std::lock_guard<std::mutex> lock(lock_of(owner));
  count = copy_links(owner, links);
  std::vector<uint32_t>& ids = scratch.ids;
  ids.clear();
  for (int i = 0; i < count; ++i) {
    if (!goes(links[i])) {
      ids.push_back(links[i]);
      continue;
    }
    const int more = copy_links(links[i], further);
    for (int k = 0; k < more; ++k)
      if (further[k] != owner && usable(further[k])) ids.push_back(further[k]);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  choose(owner, ids, scratch);
}

// A row loses links whenever one that led to it goes, and mended lists take what many lead to already, so the older a row
// the fewer lead to it, and the less it is found. Those that less than half a list of others leads to get links from where
// they lead to themselves, in the places of links to rows that a whole list or more leads to.
void LiveSegment::even_out(size_t count) {
  const size_t full = static_cast<size_t>(segment_.degree);
  uint32_t links[kMostDegree];
  std::vector<size_t> led(count);  // of every row, how many lead to it
  for (uint32_t i = 0; i < count; ++i) {
    if (!usable(i)) continue;
    for (int k = copy_links(i, links) - 1; k >= 0; --k)
      if (links[k] < count) ++led[links[k]];
  }
  std::vector<uint32_t> list;
  for (uint32_t i = 0; i < count; ++i) {
    if (!usable(i)) continue;
    const int length = copy_links(i, links);
    for (int k = 0; k < length && 2 * led[i] < full; ++k) {
      const uint32_t owner = links[k];
      const std::lock_guard<std::mutex> lock(lock_of(owner));
      list.resize(kMostDegree);
      list.resize(static_cast<size_t>(copy_links(owner, list.data())));
      if (!usable(owner) || std::find(list.begin(), list.end(), i) != list.end()) continue;
      if (list.size() == full) {
        uint32_t* most = nullptr;
        for (uint32_t& to : list)
          if (to < count && led[to] > full && (most == nullptr || led[to] > led[*most]) &&
              node(to).keeper.load(std::memory_order_acquire) != owner)
            most = &to;
        if (most == nullptr) continue;
        --led[*most];
        *most = i;
      } else {
        list.push_back(i);
      }
      ++led[i];
      write_links(owner, list);
    }
  }
}

}  // namespace statepool::graph
