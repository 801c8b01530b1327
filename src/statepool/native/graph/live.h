// A segment that changes while it is searched: rows come, go and are replaced by any number of threads.
//
// A new row gets all of its forward links first and only then a link to itself, so nothing reachable has an empty list.
// One of the links to it is kept for good: its keeper's, whose chain of keepers ends at an entry. Pruning never drops a
// kept link, so every row stays reachable. A deleted row is passed through but not answered with, until a repair has
// linked its neighbours to each other; its slot is used again when no operation that might still hold it is running.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "index.h"
#include "segment.h"

namespace statepool::graph {

struct TakenError : std::runtime_error {  // its text is the label
  using std::runtime_error::runtime_error;
};
struct FullError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct StaleError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class LiveSegment {
 public:
  struct Found {
    std::vector<uint64_t> labels;  // nearest first
    std::vector<float> distances;
    Counts counts;
  };
  // Scratch of one operation. While it is borrowed, no slot that the operation can meet is used again.
  struct Scratch : Context {
    Pool pool;
    Hits hits;
    std::vector<uint32_t> entries, chosen, ids;
    std::vector<Entry> candidates, near;
    std::vector<float> from, center, other, gaps;
    size_t limit = 0;                // slots that exist
    std::atomic<uint64_t> turn{0};   // odd while borrowed
  };

  LiveSegment(const Space& space, int degree, size_t capacity, int window, float alpha);

  const Space& space() const { return space_; }
  size_t size() const { return live_.load(std::memory_order_acquire); }
  size_t dead() const { return dead_.load(std::memory_order_acquire); }
  size_t capacity() const { return segment_.capacity(); }

  // Whether rows (space.dim floats each) can be added: std::domain_error for a bad value, naming the row.
  void check(const float* rows, size_t count) { prepare(rows, count); }
  // Slots for rows to come; FullError when there is no room. add() and update() use them, or give_back().
  std::vector<uint32_t> take_slots(size_t count);
  void give_back(const uint32_t* slots, size_t count);
  // All rows or none, into slots that were taken; if none, they are given back. std::domain_error for a bad value, naming
  // the row; TakenError for a label that is there already or comes twice.
  void add(const float* rows, const uint64_t* labels, const uint32_t* slots, size_t count);
  // Into a segment that is empty and that nobody else has yet, some times faster than add(). The same errors; what threw is
  // of no use any more.
  void fill(const float* rows, const uint64_t* labels, size_t count, int threads);
  // add() for labels that are there, which keep answering until the new row does. std::out_of_range for one that is not.
  void update(const float* rows, const uint64_t* labels, const uint32_t* slots, size_t count);
  // How many of the labels were there.
  size_t erase(const uint64_t* labels, size_t count);
  Found search(const float* query, const Request& request);
  Found exact(const float* query, int k);
  // Among allowed slots. `frozen`: as they were when the caller looked, deleted since or not; no repair may have run since.
  // StaleError if slots were freed since the turnover that the caller read before it chose them.
  Found search_filtered(const float* query, Request request, const Filter& filter, bool frozen, uint64_t turnover, float& share);
  uint64_t turnover() const { return turnover_.load(std::memory_order_acquire); }
  // Of every slot: the label and whether it is live.
  void slots(std::vector<uint64_t>& labels, std::vector<uint8_t>& live) const;
  bool contains(uint64_t label);
  // The stored row as floats (space.dims), false if there is none.
  bool get(uint64_t label, float* out);
  std::vector<uint64_t> labels();
  // Link the neighbours of deleted rows to each other and free their slots; answers how many. One at a time.
  size_t repair();
  // Live rows that no path from an entry reaches; for tests.
  size_t unreachable();

  // The list of a node as it was at one moment; answers its length. `out` has room for a full list.
  int copy_links(uint32_t node, uint32_t* out) const;
  const Segment& segment() const { return segment_; }

 private:
  enum State : uint8_t { kFree, kComing, kLive, kDead };
  static constexpr uint32_t kRoot = 0xfffffffeu;  // keeper of an entry that no link must reach
  static constexpr size_t kStripes = 1024, kMostEntries = 100;

  struct alignas(32) Node {
    std::atomic<uint32_t> version{0};  // odd while the list is written
    std::atomic<uint32_t> keeper{kNone};
    std::atomic<uint64_t> label{0};
    std::atomic<uint8_t> state{kFree};
  };

  class Pin {
   public:
    explicit Pin(LiveSegment& owner);
    ~Pin();
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    Scratch* operator->() const { return scratch_; }
    Scratch& operator*() const { return *scratch_; }

   private:
    LiveSegment& owner_;
    Scratch* scratch_;
  };

  Node& node(uint32_t i) { return reinterpret_cast<Node*>(nodes_.data())[i]; }
  const Node& node(uint32_t i) const { return const_cast<LiveSegment*>(this)->node(i); }
  uint8_t state(uint32_t i) const { return node(i).state.load(std::memory_order_acquire); }
  bool usable(uint32_t i) const { return state(i) == kLive || state(i) == kComing; }
  bool kept(uint32_t i) const { return node(i).keeper.load(std::memory_order_acquire) != kNone; }
  std::mutex& lock_of(uint32_t i) { return stripes_[i % kStripes]; }

  std::vector<float> prepare(const float* rows, size_t count);
  void write_row(uint32_t slot, const float* row, uint64_t label);
  void link(uint32_t slot, Scratch& scratch);
  void explore(const float* from, Scratch& scratch);
  bool first(uint32_t slot);
  void root(uint32_t slot);
  bool adopt(uint32_t parent, uint32_t child, Scratch& scratch);
  bool chain_meets(uint32_t from, uint32_t child, const std::vector<bool>& dying) const;
  void put(uint32_t owner, uint32_t slot, Scratch& scratch);
  void choose(uint32_t owner, const std::vector<uint32_t>& ids, Scratch& scratch);
  void write_links(uint32_t owner, const std::vector<uint32_t>& chosen);
  void offer_entry(uint32_t slot);
  void keep_all();
  void rekeep(uint32_t child, Scratch& scratch, const std::vector<bool>& dying);
  void bridge(uint32_t owner, Scratch& scratch, const std::vector<bool>& dying);
  void even_out(size_t count);
  void wait_for_others();
  int among_dead(int width) const;
  void pick(const std::vector<Entry>& nearest, size_t k, bool frozen, Found& found) const;
  uint32_t find(uint64_t label);  // its live slot or kNone; needs names_mutex_

  Space space_;
  const int window_;
  const float alpha_;
  Segment segment_;
  Region nodes_;
  std::atomic<size_t> slots_{0}, live_{0}, dead_{0}, linked_{0};
  std::atomic<uint64_t> turnover_{0};  // repairs that freed slots
  std::unique_ptr<std::mutex[]> stripes_{new std::mutex[kStripes]};

  std::mutex slots_mutex_;  // free_, slots_, space_.norm
  std::vector<uint32_t> free_;
  std::mutex names_mutex_;  // names_, states from coming to live to dead
  std::unordered_map<uint64_t, uint32_t> names_;
  std::mutex entries_mutex_;
  std::vector<uint32_t> entries_;
  std::mutex repair_mutex_;
  std::mutex scratch_mutex_;
  std::vector<std::unique_ptr<Scratch>> scratches_;
  std::vector<Scratch*> idle_;
};

// A query over a live segment: Walk, but lists are copied and nodes younger than the query are left out.
struct LiveWalk {
  const LiveSegment& segment;
  const float* query;  // space.dims floats
  Visited& visited;
  const std::vector<uint32_t>& entries;
  size_t limit;

  static constexpr bool kEstimates = false;
  static constexpr bool kAhead = false;
  static constexpr int kLeastGift = 1;

  bool open(uint32_t) const { return true; }
  void fetch(uint32_t node) const {
    const char* links = reinterpret_cast<const char*>(segment.segment().links(node));
    for (int byte = 0; byte < 4 * segment.segment().degree; byte += 64) __builtin_prefetch(links + byte);
  }
  void expand(uint32_t node, Hits& hits) const {
    uint32_t links[kMostDegree];
    const int count = segment.copy_links(node, links);
    hits.count = 0;
    for (int i = 0; i < count; ++i)
      if (links[i] < limit && visited.claim(links[i])) hits.ids[hits.count++] = links[i];
    measure(hits);
  }
  void enter(int part, int parts, Hits& hits) const {
    hits.count = 0;
    for (size_t i = static_cast<size_t>(part); i < entries.size(); i += static_cast<size_t>(parts))
      if (entries[i] < limit && visited.claim(entries[i]) && hits.count < kMostDegree) hits.ids[hits.count++] = entries[i];
    measure(hits);
  }

 private:
  void measure(Hits& hits) const {
    segment.space().distances(query, segment.segment().rows(), hits.ids, hits.count, hits.distances);
  }
};

}  // namespace statepool::graph
