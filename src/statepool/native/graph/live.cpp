#include "live.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include "engines.h"
#include "prune.h"

namespace statepool::graph {
namespace {

uint32_t load(const uint32_t* word) {
  return std::atomic_ref<uint32_t>(*const_cast<uint32_t*>(word)).load(std::memory_order_acquire);
}
void store(uint32_t* word, uint32_t value) { std::atomic_ref<uint32_t>(*word).store(value, std::memory_order_release); }

}  // namespace

LiveSegment::Pin::Pin(LiveSegment& owner) : owner_(owner) {
  {
    const std::lock_guard<std::mutex> lock(owner.scratch_mutex_);
    if (owner.idle_.empty()) {
      owner.scratches_.push_back(std::make_unique<Scratch>());
      owner.idle_.reserve(owner.scratches_.size());
      owner.idle_.push_back(owner.scratches_.back().get());
      const size_t dims = static_cast<size_t>(owner.space_.dims);
      for (std::vector<float>* floats : {&owner.idle_.back()->from, &owner.idle_.back()->center, &owner.idle_.back()->other})
        floats->resize(dims);
      owner.idle_.back()->vector.resize(dims);
    }
    own_last(owner.idle_);
    scratch_ = owner.idle_.back();
    scratch_->user = this_thread();
    owner.idle_.pop_back();
    scratch_->turn.fetch_add(1, std::memory_order_release);
  }
  const std::lock_guard<std::mutex> lock(owner.entries_mutex_);
  scratch_->limit = owner.slots_.load(std::memory_order_acquire);
  scratch_->entries = owner.entries_;
}

LiveSegment::Pin::~Pin() {
  const std::lock_guard<std::mutex> lock(owner_.scratch_mutex_);
  scratch_->turn.fetch_add(1, std::memory_order_release);
  owner_.idle_.push_back(scratch_);
}

// Until every operation that runs now has ended.
void LiveSegment::wait_for_others() {
  std::vector<std::pair<Scratch*, uint64_t>> running;
  {
    const std::lock_guard<std::mutex> lock(scratch_mutex_);
    for (const auto& scratch : scratches_)
      if (const uint64_t turn = scratch->turn.load(std::memory_order_acquire); turn % 2 == 1)
        running.emplace_back(scratch.get(), turn);
  }
  for (const auto& [scratch, turn] : running)
    while (scratch->turn.load(std::memory_order_acquire) == turn) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

LiveSegment::LiveSegment(const Space& space, int degree, size_t capacity, int window, float alpha)
    : space_(space),
      window_(window),
      alpha_(alpha),
      segment_(space, degree, capacity),
      nodes_(capacity * sizeof(Node)) {}

std::vector<float> LiveSegment::prepare(const float* rows, size_t count) {
  Space space = space_;
  {
    // Under ip the first rows set the norm that all are lifted to. A longer row later is not lifted: the graph around it
    // is a little worse, its distances are as exact as any.
    const std::lock_guard<std::mutex> lock(slots_mutex_);
    if (space_.metric == Metric::ip && space_.norm == 0)
      for (size_t i = 0; i < count; ++i) {
        const double norm = Space::norm_of(rows + i * static_cast<size_t>(space_.dim), space_.dim);
        if (std::isfinite(norm)) space_.norm = std::max(space_.norm, static_cast<float>(norm));
      }
    space.norm = space_.norm;
  }
  std::vector<float> prepared(count * static_cast<size_t>(space.dims));
  for (size_t i = 0; i < count; ++i) {
    try {
      space.prepare(rows + i * static_cast<size_t>(space.dim), prepared.data() + i * static_cast<size_t>(space.dims), false);
    } catch (const std::domain_error& error) {
      throw std::domain_error("row " + std::to_string(i) + " " + error.what());
    }
  }
  return prepared;
}

std::vector<uint32_t> LiveSegment::take_slots(size_t count) {
  const std::lock_guard<std::mutex> lock(slots_mutex_);
  const size_t used = slots_.load(std::memory_order_relaxed), reused = std::min(count, free_.size());
  if (used + count - reused > capacity()) throw FullError("the segment is full");
  std::vector<uint32_t> slots(free_.end() - static_cast<std::ptrdiff_t>(reused), free_.end());
  free_.resize(free_.size() - reused);
  for (size_t next = used; slots.size() < count; ++next) slots.push_back(static_cast<uint32_t>(next));
  slots_.store(used + count - reused, std::memory_order_release);
  return slots;
}

void LiveSegment::give_back(const uint32_t* slots, size_t count) {
  const std::lock_guard<std::mutex> lock(slots_mutex_);
  free_.insert(free_.end(), slots, slots + count);
}

void LiveSegment::write_row(uint32_t slot, const float* row, uint64_t label) {
  distance_kernels().encode[static_cast<int>(space_.dtype)](row, segment_.row(slot), space_.dims);
  write_links(slot, {});
  node(slot).label.store(label, std::memory_order_relaxed);
  node(slot).keeper.store(kNone, std::memory_order_relaxed);
  node(slot).state.store(kComing, std::memory_order_release);
}

int LiveSegment::copy_links(uint32_t owner, uint32_t* out) const {
  const uint32_t* links = segment_.links(owner);
  const Node& its = node(owner);
  for (Patience patience;; patience.wait()) {
    const uint32_t version = its.version.load(std::memory_order_acquire);
    if (version % 2 == 1) continue;
    int count = 0;
    while (count < segment_.degree && (out[count] = load(links + count)) != kNone) ++count;
    // The loads above acquire, so this one cannot move before them.
    if (its.version.load(std::memory_order_relaxed) == version) return count;
  }
}

// Needs the owner's lock, unless nobody else can know the owner.
void LiveSegment::write_links(uint32_t owner, const std::vector<uint32_t>& chosen) {
  uint32_t* links = segment_.links(owner);
  std::atomic<uint32_t>& version = node(owner).version;
  const uint32_t before = version.load(std::memory_order_relaxed);
  version.store(before + 1, std::memory_order_relaxed);
  for (size_t k = 0; k < static_cast<size_t>(segment_.degree); ++k) store(links + k, k < chosen.size() ? chosen[k] : kNone);
  version.store(before + 2, std::memory_order_release);
}

// What a search for the row expands, nearest first, into scratch.candidates.
void LiveSegment::explore(const float* from, Scratch& scratch) {
  scratch.visited.reset(scratch.limit);
  scratch.pool.reset(window_);
  scratch.candidates.clear();
  Hits& hits = scratch.hits;
  hits.count = 0;
  for (const uint32_t entry : scratch.entries)
    if (hits.count < kMostDegree && entry < scratch.limit && scratch.visited.claim(entry)) hits.ids[hits.count++] = entry;
  uint32_t links[kMostDegree];
  for (;;) {
    segment_.squared(from, hits.ids, hits.count, hits.distances);
    for (int i = 0; i < hits.count; ++i) scratch.pool.insert(entry_of(hits.distances[i], hits.ids[i]));
    const int next = scratch.pool.next();
    if (next >= scratch.pool.size()) break;
    const Entry nearest = scratch.pool.at(next);
    scratch.candidates.push_back(nearest);
    scratch.pool.mark(next);
    const int count = copy_links(id_of(nearest), links);
    hits.count = 0;
    for (int i = 0; i < count; ++i)
      if (links[i] < scratch.limit && scratch.visited.claim(links[i])) hits.ids[hits.count++] = links[i];
  }
  std::sort(scratch.candidates.begin(), scratch.candidates.end());
}

// The first of all becomes an entry before there is anything to link it to.
bool LiveSegment::first(uint32_t slot) {
  const std::lock_guard<std::mutex> lock(entries_mutex_);
  if (!entries_.empty()) return false;
  node(slot).keeper.store(kRoot, std::memory_order_release);
  entries_.push_back(slot);
  return true;
}

void LiveSegment::root(uint32_t slot) {
  const std::lock_guard<std::mutex> lock(entries_mutex_);
  node(slot).keeper.store(kRoot, std::memory_order_release);
  if (std::find(entries_.begin(), entries_.end(), slot) == entries_.end()) entries_.push_back(slot);
}

// A few entries from all times, so that a search starts near its goal although the data moves.
void LiveSegment::offer_entry(uint32_t slot) {
  constexpr size_t kWanted = 24, kLeast = 64;
  const size_t count = linked_.fetch_add(1, std::memory_order_relaxed) + 1;
  const bool doubled = (count & (count - 1)) == 0;
  if (!doubled && count % std::max(kLeast, size() / kWanted) != 0) return;
  const std::lock_guard<std::mutex> lock(entries_mutex_);
  if (entries_.size() < kWanted && std::find(entries_.begin(), entries_.end(), slot) == entries_.end())
    entries_.push_back(slot);
}

void LiveSegment::link(uint32_t slot, Scratch& scratch) {
  if (scratch.entries.empty()) {
    if (first(slot)) return;
    const std::lock_guard<std::mutex> lock(entries_mutex_);
    scratch.entries = entries_;
    scratch.limit = slots_.load(std::memory_order_acquire);
  }
  explore(segment_.floats(slot, scratch.from.data()), scratch);
  std::vector<Entry> near;
  for (const Entry candidate : scratch.candidates)
    if (id_of(candidate) != slot && usable(id_of(candidate))) near.push_back(candidate);
  std::vector<uint32_t> chosen;
  prune(segment_, slot, near, alpha_, scratch.other.data(), chosen);
  write_links(slot, chosen);
  const bool kept = std::any_of(near.begin(), near.end(), [&](Entry c) { return adopt(id_of(c), slot, scratch); });
  if (!kept) root(slot);
  for (const uint32_t owner : chosen) {
    const std::lock_guard<std::mutex> lock(lock_of(owner));
    if (usable(owner)) put(owner, slot, scratch);
  }
  offer_entry(slot);
}

// Make `parent` the keeper of `child`, unless it goes or keeps too many.
bool LiveSegment::adopt(uint32_t parent, uint32_t child, Scratch& scratch) {
  const std::lock_guard<std::mutex> lock(lock_of(parent));
  if (!usable(parent)) return false;
  uint32_t links[kMostDegree];
  const int count = copy_links(parent, links);
  int kept = 0;
  for (int i = 0; i < count; ++i) kept += node(links[i]).keeper.load(std::memory_order_acquire) == parent;
  if (2 * kept >= segment_.degree) return false;
  node(child).keeper.store(parent, std::memory_order_release);
  put(parent, child, scratch);
  return true;
}

// Add `slot` to the owner's list; something else may leave it, or the slot itself if the owner does not keep it. Needs the
// owner's lock.
void LiveSegment::put(uint32_t owner, uint32_t slot, Scratch& scratch) {
  std::vector<uint32_t>& ids = scratch.ids;
  ids.resize(kMostDegree);
  ids.resize(static_cast<size_t>(copy_links(owner, ids.data())));
  if (std::find(ids.begin(), ids.end(), slot) != ids.end()) return;
  ids.push_back(slot);
  if (ids.size() <= static_cast<size_t>(segment_.degree)) return write_links(owner, ids);
  choose(owner, ids, scratch);
}

// The owner's list out of `ids`: first what it keeps. Needs the owner's lock.
void LiveSegment::choose(uint32_t owner, const std::vector<uint32_t>& ids, Scratch& scratch) {
  scratch.gaps.resize(ids.size());
  segment_.squared(segment_.floats(owner, scratch.center.data()), ids.data(), static_cast<int>(ids.size()),
                   scratch.gaps.data());
  scratch.chosen.clear();
  scratch.near.clear();
  for (size_t i = 0; i < ids.size(); ++i) {
    scratch.near.push_back(entry_of(scratch.gaps[i], ids[i]));
    if (node(ids[i]).keeper.load(std::memory_order_acquire) == owner) scratch.chosen.push_back(ids[i]);
  }
  std::sort(scratch.near.begin(), scratch.near.end());
  prune(segment_, owner, scratch.near, alpha_, scratch.other.data(), scratch.chosen);
  write_links(owner, scratch.chosen);
}

void LiveSegment::add(const float* rows, const uint64_t* labels, const uint32_t* slots, size_t count) {
  std::vector<float> prepared;
  try {
    prepared = prepare(rows, count);
    const std::lock_guard<std::mutex> lock(names_mutex_);
    size_t named = 0;
    while (named < count && names_.try_emplace(labels[named], slots[named]).second) ++named;
    if (named < count) {
      for (size_t i = 0; i < named; ++i) names_.erase(labels[i]);
      throw TakenError(std::to_string(labels[named]));
    }
  } catch (...) {
    give_back(slots, count);
    throw;
  }
  for (size_t i = 0; i < count; ++i) {
    write_row(slots[i], prepared.data() + i * static_cast<size_t>(space_.dims), labels[i]);
    const Pin scratch(*this);
    link(slots[i], *scratch);
    node(slots[i]).state.store(kLive, std::memory_order_release);
    live_.fetch_add(1, std::memory_order_release);
  }
}

void LiveSegment::update(const float* rows, const uint64_t* labels, const uint32_t* slots, size_t count) {
  std::vector<float> prepared;
  try {
    prepared = prepare(rows, count);
    const std::lock_guard<std::mutex> lock(names_mutex_);
    for (size_t i = 0; i < count; ++i)
      if (find(labels[i]) == kNone) throw std::out_of_range(std::to_string(labels[i]));
  } catch (...) {
    give_back(slots, count);
    throw;
  }
  for (size_t i = 0; i < count; ++i) {
    write_row(slots[i], prepared.data() + i * static_cast<size_t>(space_.dims), labels[i]);
    const Pin scratch(*this);
    link(slots[i], *scratch);
    const std::lock_guard<std::mutex> lock(names_mutex_);
    const uint32_t old = find(labels[i]);
    // Deleted meanwhile: the deletion came last.
    node(slots[i]).state.store(old == kNone ? kDead : kLive, std::memory_order_release);
    dead_.fetch_add(1, std::memory_order_release);
    if (old == kNone) continue;
    node(old).state.store(kDead, std::memory_order_release);
    names_[labels[i]] = slots[i];
  }
}

uint32_t LiveSegment::find(uint64_t label) {
  const auto found = names_.find(label);
  return found == names_.end() || state(found->second) != kLive ? kNone : found->second;
}

size_t LiveSegment::erase(const uint64_t* labels, size_t count) {
  const std::lock_guard<std::mutex> lock(names_mutex_);
  size_t gone = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t slot = find(labels[i]);
    if (slot == kNone) continue;
    node(slot).state.store(kDead, std::memory_order_release);
    names_.erase(labels[i]);
    ++gone;
  }
  live_.fetch_sub(gone, std::memory_order_release);
  dead_.fetch_add(gone, std::memory_order_release);
  return gone;
}

bool LiveSegment::contains(uint64_t label) {
  const std::lock_guard<std::mutex> lock(names_mutex_);
  return find(label) != kNone;
}

bool LiveSegment::get(uint64_t label, float* out) {
  const Pin scratch(*this);
  uint32_t slot;
  {
    const std::lock_guard<std::mutex> lock(names_mutex_);
    slot = find(label);
  }
  if (slot == kNone) return false;
  distance_kernels().decode[static_cast<int>(space_.dtype)](segment_.row(slot), out, space_.dims);
  return true;
}

std::vector<uint64_t> LiveSegment::labels() {
  const std::lock_guard<std::mutex> lock(names_mutex_);
  std::vector<uint64_t> found;
  for (const auto& [label, slot] : names_)
    if (state(slot) == kLive) found.push_back(label);
  return found;
}

// The k nearest that are live, or, frozen, all were. While a row is replaced, the old and the new one may both be: the nearer
// is taken.
void LiveSegment::pick(const std::vector<Entry>& nearest, size_t k, bool frozen, Found& found) const {
  found.labels.clear();
  found.distances.clear();
  for (const Entry entry : nearest) {
    if (found.labels.size() == k) return;
    const uint64_t label = node(id_of(entry)).label.load(std::memory_order_relaxed);
    if (!frozen && state(id_of(entry)) != kLive) continue;
    if (std::find(found.labels.begin(), found.labels.end(), label) != found.labels.end()) continue;
    found.labels.push_back(label);
    found.distances.push_back(distance_of(entry));
  }
}

// Candidates of which `width` are live if rows were deleted evenly: deleted ones take places in a pool too.
int LiveSegment::among_dead(int width) const {
  const size_t live = std::max<size_t>(size(), 1), wanted = static_cast<size_t>(width);
  return static_cast<int>(std::min(wanted + (wanted * dead() + live - 1) / live, std::max(wanted, live + dead())));
}

LiveSegment::Found LiveSegment::search(const float* query, const Request& request) {
  Found found;
  const Pin scratch(*this);
  space_.prepare(query, scratch->vector.data(), true);
  Request wider = request;
  wider.width = among_dead(request.width);
  std::vector<Entry> nearest;
  for (;;) {
    scratch->visited.reset(scratch->limit);
    scratch->query.reset(wider);
    const LiveWalk walk{*this, scratch->vector.data(), scratch->visited, scratch->entries, scratch->limit};
    run_engine(walk, scratch->query);
    nearest.clear();
    gather(scratch->query, false, wider.width, scratch->merged, nearest);
    found.counts = total(scratch->query);
    pick(nearest, static_cast<size_t>(request.k), false, found);
    // Deleted rows filled the pool: there may be more behind them.
    if (found.labels.size() == static_cast<size_t>(request.k) || found.counts.truncated ||
        nearest.size() < static_cast<size_t>(wider.width))
      return found;
    wider.width *= 2;
  }
}

LiveSegment::Found LiveSegment::exact(const float* query, int k) {
  Found found;
  const Pin scratch(*this);
  space_.prepare(query, scratch->vector.data(), true);
  std::vector<Entry> nearest;
  for (uint32_t i = 0; i < scratch->limit; ++i) {
    if (state(i) != kLive) continue;
    float distance;
    space_.distances(scratch->vector.data(), segment_.rows(), &i, 1, &distance);
    nearest.push_back(entry_of(distance, i));
  }
  found.counts.distances = found.counts.most = nearest.size();
  std::sort(nearest.begin(), nearest.end());
  pick(nearest, static_cast<size_t>(k), false, found);
  return found;
}

void LiveSegment::slots(std::vector<uint64_t>& labels, std::vector<uint8_t>& live) const {
  const size_t count = slots_.load(std::memory_order_acquire);
  labels.resize(count);
  live.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    live[i] = state(i) == kLive;
    labels[i] = node(i).label.load(std::memory_order_relaxed);
  }
}

size_t LiveSegment::unreachable() {
  const Pin scratch(*this);
  scratch->visited.reset(scratch->limit);
  std::vector<uint32_t> open;
  for (const uint32_t entry : scratch->entries)
    if (scratch->visited.claim(entry)) open.push_back(entry);
  uint32_t links[kMostDegree];
  while (!open.empty()) {
    const uint32_t next = open.back();
    open.pop_back();
    const int count = copy_links(next, links);
    for (int i = 0; i < count; ++i)
      if (links[i] < scratch->limit && scratch->visited.claim(links[i])) open.push_back(links[i]);
  }
  size_t lost = 0;
  for (uint32_t i = 0; i < scratch->limit; ++i) lost += state(i) == kLive && !scratch->visited.seen(i);
  return lost;
}

}  // namespace statepool::graph
