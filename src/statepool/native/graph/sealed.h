// A sealed segment: a node's row holds the node in eight bits and its 32 neighbours in one bit per dimension.
//
// After SymphonyQG (Gou et al., SIGMOD 2025) and RaBitQ (Gao and Long, SIGMOD 2024). Everything is Euclidean in a rotated
// space. With r = u - v for a neighbour u of v, s the signs of r and f = |r|^2 / sum |r_i|,
//     |q - u|^2 ~ |q - v|^2 + |r|^2 + 2 f <s, v> - 2 f <s, q>,
// so a row keeps two numbers per neighbour, and <s, q> comes from tables made once per query.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "allowed.h"
#include "pool.h"
#include "region.h"
#include "rotation.h"
#include "segment.h"
#include "visited.h"
#include "walk.h"

namespace statepool::graph {

constexpr int kMostDims = 65552;

class SealedSegment {
 public:
  // Codes of all rows and links of `source`, on `threads` threads. Lists are filled up to 32 with near nodes.
  SealedSegment(const Segment& source, int threads, uint64_t seed);
  // Rows that another one wrote, in the file `source` lies in.
  SealedSegment(const Segment& source, const void* rows, float unit, uint64_t seed);

  const Segment& source() const { return source_; }
  int dims() const { return dims_; }
  int tables() const { return dims_ / 4; }
  size_t row_bytes() const { return stride_; }

  // The row's parts. Row size() is the root: the mean of all, with the entries as its neighbours.
  const char* row(uint32_t node) const { return rows_.data() + node * stride_; }
  const uint8_t* codes(const char* row) const { return reinterpret_cast<const uint8_t*>(row + codes_at_); }
  const uint16_t* add(const char* row) const { return reinterpret_cast<const uint16_t*>(row + add_at_); }
  const uint16_t* scale(const char* row) const { return add(row) + kScanLanes; }
  const uint32_t* ids(const char* row) const { return reinterpret_cast<const uint32_t*>(row + ids_at_); }
  float norm(const char* row) const { return number(row, 4); }
  // How much nearer than it seems a row may be, compared to another. What eight bits cut off has a deviation of step / sqrt(12)
  // in every dimension: over a distance of d that are 2 sqrt(d) of them, for the difference of two rows 5 sqrt(d) steps in six
  // deviations. Its own square is the other term.
  float doubt(Entry found) const {
    const float step = number(row(id_of(found)), 0);
    return step * (5 * std::sqrt(std::max(0.0f, distance_of(found))) + step * static_cast<float>(dims_) / 12);
  }
  // A prepared row or query of dims() floats into the space of the rows, in place.
  void turn(float* x) const {
    for (int i = 0; i < dims_; ++i) x[i] *= unit_;
    rotation_.apply(x);
  }
  uint32_t root() const { return static_cast<uint32_t>(source_.size()); }
  float unit() const { return unit_; }
  uint64_t seed() const { return seed_; }
  // Whether a row may be read: always, but for a file that is damaged there.
  bool sound(uint32_t node) const {
    Guard* guard = source_.guard;
    if (guard == nullptr) return true;
    if (!guard->touch(row(node), stride_)) return false;
    for (int k = 0; k < kScanLanes; ++k) {
      if (ids(row(node))[k] == kNone || ids(row(node))[k] < source_.size()) continue;
      guard->accuse(ids(row(node)) + k);
      return false;
    }
    return true;
  }

 private:
  struct Scratch {
    std::vector<float> floats;
    std::vector<Entry> near;
    std::vector<uint32_t> ids;
  };

  SealedSegment(const Segment& source, uint64_t seed);  // no rows yet
  float number(const char* row, int byte) const {
    float number;
    std::memcpy(&number, row + dims_ + byte, 4);
    return number;
  }
  void write_row(uint32_t node, const float* center, const uint32_t* links, const float* turned, float* scratch);
  void fill(uint32_t node, uint32_t* links, Scratch& scratch) const;
  template <class Work>
  void parallel(int threads, size_t count, Work work) const;

  const Segment& source_;
  int dims_;
  uint64_t seed_;
  Rotation rotation_;
  float unit_ = 1;  // scales the longest row to 1, so that halves hold every number of a row
  size_t codes_at_, add_at_, ids_at_, stride_;
  Region rows_;
};

// A query over a sealed segment, shared by its threads. Distances to neighbours are estimates; a node's own distance is
// known when it is expanded. A node may be met several times, with a better estimate later; it is expanded once.
struct SealedWalk {
  static constexpr bool kEstimates = true;
  static constexpr bool kAhead = true;     // a hop is shorter than the way of its row from memory
  static constexpr int kLeastGift = 3;     // and than the way of a single candidate to another thread

  const SealedSegment& segment;
  const float* query;     // rotated
  const uint8_t* lookup;  // 16 bytes per table
  float delta, offset, square;  // of the tables; |query|^2
  Visited& visited;             // expanded by any thread
  bool alone;                   // one thread, whose own set is enough
  const Allowed* allowed;       // rows that may be answers; null for all

  bool open(uint32_t node) const { return alone || visited.claim(node); }
  bool answers(uint32_t node) const { return allowed == nullptr || (*allowed)(node); }
  void fetch(uint32_t node) const {
    if (!alone) visited.prefetch_to_write(node);
    const char* row = segment.row(node);
    for (size_t byte = 0; byte < segment.row_bytes(); byte += 64) __builtin_prefetch(row + byte);
  }
  // Neighbours estimated below `bound`, without those in `own`.
  void expand(uint32_t node, float bound, const Visited& own, Hits& hits) const;
  void enter(int part, int parts, const Visited& own, Hits& hits) const;
};

}  // namespace statepool::graph
