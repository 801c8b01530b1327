#include "sealed.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>

#include "pool.h"

namespace statepool::graph {
namespace {

constexpr int kFillers = 16;  // nearest neighbours whose neighbours may fill a list: rows far apart, each read for one distance
constexpr float kFar = std::numeric_limits<float>::infinity();

size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

void to_half(float value, uint16_t* out) {
  float lanes[16] = {value};
  char row[32];
  distance_kernels().encode[static_cast<int>(Dtype::f16)](lanes, row, 16);
  std::memcpy(out, row, 2);
}

}  // namespace

SealedSegment::SealedSegment(const Segment& source, uint64_t seed)
    : source_(source), dims_(source.space.dims), seed_(seed), rotation_(dims_, seed) {
  const size_t dims = static_cast<size_t>(dims_);
  codes_at_ = round_up(dims + 8);
  add_at_ = codes_at_ + 4 * dims;
  ids_at_ = add_at_ + 2 * sizeof(uint16_t) * kScanLanes;
  stride_ = round_up(ids_at_ + sizeof(uint32_t) * kScanLanes);
}

SealedSegment::SealedSegment(const Segment& source, const void* rows, float unit, uint64_t seed)
    : SealedSegment(source, seed) {
  unit_ = unit;
  rows_ = Region::view(rows);
}

SealedSegment::SealedSegment(const Segment& source, int threads, uint64_t seed) : SealedSegment(source, seed) {
  const size_t dims = static_cast<size_t>(dims_), count = source.size();
  float longest = 0;
  std::vector<float> decoded(dims);
  for (uint32_t node = 0; node < count; ++node)
    longest = std::max(longest, static_cast<float>(Space::norm_of(source.floats(node, decoded.data()), dims_)));
  if (longest > 0) unit_ = 1 / longest;
  rows_ = Region((count + 1) * stride_);
  // Every row is the neighbour of many: turn each once.
  Region turned(count * dims * sizeof(float));
  auto* all = reinterpret_cast<float*>(turned.data());
  parallel(threads, count, [&](uint32_t node, Scratch& scratch) {
    float* out = all + node * dims;
    std::memcpy(out, source_.floats(node, scratch.floats.data()), sizeof(float) * dims);
    turn(out);
  });
  parallel(threads, count, [&](uint32_t node, Scratch& scratch) {
    uint32_t links[kScanLanes];
    fill(node, links, scratch);
    write_row(node, all + node * dims, links, all, scratch.floats.data());
  });
  std::vector<float> mean(dims);
  for (const uint32_t node : source.entries)
    for (size_t i = 0; i < dims; ++i) mean[i] += all[node * dims + i] / static_cast<float>(source.entries.size());
  uint32_t links[kScanLanes];
  for (size_t j = 0; j < kScanLanes; ++j) links[j] = j < source.entries.size() ? source.entries[j] : kNone;
  write_row(root(), mean.data(), links, all, decoded.data());
}

template <class Work>
void SealedSegment::parallel(int threads, size_t count, Work work) const {
  std::atomic<uint32_t> next{0};
  const auto loop = [&] {
    Scratch scratch;
    scratch.floats.resize(static_cast<size_t>(dims_));
    for (uint32_t node = next++; node < count; node = next++) work(node, scratch);
  };
  std::vector<std::thread> helpers;
  for (int t = 1; t < threads; ++t) helpers.emplace_back(loop);
  loop();
  for (std::thread& helper : helpers) helper.join();
}

// The node's links, then the nearest of its nearest neighbours' neighbours: a scan reads 32 codes whether they are used or not.
void SealedSegment::fill(uint32_t node, uint32_t* links, Scratch& scratch) const {
  std::vector<Entry>& near = scratch.near;
  std::vector<uint32_t>& ids = scratch.ids;
  int used = 0;
  for (int k = 0; k < source_.degree && used < kScanLanes && source_.links(node)[k] != kNone; ++k)
    links[used++] = source_.links(node)[k];
  if (used < kScanLanes) {
    ids.clear();
    for (int k = 0; k < std::min(used, kFillers); ++k)
      for (int j = 0; j < source_.degree && source_.links(links[k])[j] != kNone; ++j) ids.push_back(source_.links(links[k])[j]);
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    ids.erase(std::remove_if(ids.begin(), ids.end(),
                             [&](uint32_t id) { return id == node || std::find(links, links + used, id) != links + used; }),
              ids.end());
    std::vector<float> distances(ids.size());
    source_.squared(source_.floats(node, scratch.floats.data()), ids.data(), static_cast<int>(ids.size()), distances.data());
    near.clear();
    for (size_t i = 0; i < ids.size(); ++i) near.push_back(entry_of(distances[i], ids[i]));
    const size_t wanted = std::min(near.size(), static_cast<size_t>(kScanLanes - used));
    std::partial_sort(near.begin(), near.begin() + static_cast<std::ptrdiff_t>(wanted), near.end());
    for (size_t i = 0; i < wanted; ++i) links[used++] = id_of(near[i]);
  }
  while (used < kScanLanes) links[used++] = kNone;
}

// `turned` has all rows, turned; `center` is one such row, `held` room for another.
void SealedSegment::write_row(uint32_t node, const float* center, const uint32_t* links, const float* turned, float* held) {
  const size_t dims = static_cast<size_t>(dims_);
  char* row = rows_.data() + node * stride_;
  distance_kernels().encode[static_cast<int>(Dtype::i8)](center, row, dims_);
  // The neighbours are relative to the node as the row holds it, so that its rounding is not in the estimates.
  distance_kernels().decode[static_cast<int>(Dtype::i8)](row, held, dims_);
  const double length_of_row = Space::norm_of(held, dims_);
  const float square = static_cast<float>(length_of_row * length_of_row);
  std::memcpy(row + dims + 4, &square, 4);
  auto* codes = reinterpret_cast<uint8_t*>(row + codes_at_);
  auto* add = reinterpret_cast<uint16_t*>(row + add_at_);
  uint16_t* scale = add + kScanLanes;
  uint16_t signs[kMostDims / 16];
  for (int j = 0; j < kScanLanes; ++j) {
    std::memcpy(row + ids_at_ + sizeof(uint32_t) * static_cast<size_t>(j), links + j, sizeof(uint32_t));
    if (links[j] == kNone) {
      to_half(kFar, add + j);
      continue;
    }
    float length, reach, along;
    scan_kernels().code(turned + links[j] * dims, held, dims_, signs, &length, &reach, &along);
    for (int t = 0; t < tables(); ++t)
      codes[16 * t + j % 16] |= static_cast<uint8_t>((signs[t / 4] >> (4 * (t % 4)) & 15) << (j < 16 ? 0 : 4));
    const float factor = reach > 0 ? length / reach : 0;
    to_half(length + 2 * factor * along, add + j);
    to_half(-2 * factor, scale + j);
  }
}

void SealedWalk::expand(uint32_t node, float bound, const Visited& own, Hits& hits) const {
  hits.count = 0;
  hits.own = kFar;
  if (!segment.sound(node)) return;
  const char* row = segment.row(node);
  const uint32_t zero = 0;
  float dot;
  distance_kernels().dot[static_cast<int>(Dtype::i8)](query, row, 0, &zero, 1, segment.dims(), &dot);
  hits.own = square + segment.norm(row) - 2 * dot;
  float estimates[kScanLanes];
  uint32_t mask = scan_kernels().scan(segment.codes(row), lookup, segment.tables(), segment.add(row), segment.scale(row), delta,
                                      offset, hits.own, bound, estimates);
  const uint32_t* ids = segment.ids(row);
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    hits.ids[hits.count] = ids[lane];
    hits.distances[hits.count] = estimates[lane];
    hits.count += !own.seen(ids[lane]);
  }
}

// The entries of which this part is the `part`-th of `parts`, by estimate.
void SealedWalk::enter(int part, int parts, const Visited& own, Hits& hits) const {
  if (part > 0)  // the tables are in the caller's cache, and every line of them is needed now
    for (int i = 0; i < segment.dims(); i += 16) {
      __builtin_prefetch(query + i);
      __builtin_prefetch(lookup + 4 * i);
    }
  expand(segment.root(), kFar, own, hits);
  if (parts == 1) return;
  Entry order[kScanLanes];
  for (int i = 0; i < hits.count; ++i) order[i] = entry_of(hits.distances[i], hits.ids[i]);
  std::sort(order, order + hits.count);
  int kept = 0;
  for (int i = part % std::max(1, hits.count); i < hits.count; i += parts) {
    hits.ids[kept] = id_of(order[i]);
    hits.distances[kept++] = distance_of(order[i]);
  }
  hits.count = kept;
}

}  // namespace statepool::graph
