// Both kinds of segment as graphs for a filtered search.
#include "filtered.h"

#include <algorithm>

#include "engines.h"
#include "live.h"

namespace statepool::graph {
namespace {

void prefetch_links(const Segment& segment, uint32_t node) {
  const char* links = reinterpret_cast<const char*>(segment.links(node));
  for (int byte = 0; byte < 4 * segment.degree; byte += 64) __builtin_prefetch(links + byte);
}

struct Fixed {
  const Segment& segment;
  const float* query;

  size_t size() const { return segment.size(); }
  const std::vector<uint32_t>& entries() const { return segment.entries; }
  const uint32_t* links(uint32_t node, uint32_t*, int& count) const {
    count = 0;
    if (!segment.sound_links(node)) return nullptr;
    const uint32_t* links = segment.links(node);
    while (count < segment.degree && links[count] != kNone) ++count;
    return links;
  }
  void fetch(uint32_t node) const { prefetch_links(segment, node); }
  bool sound_row(uint32_t node) const { return segment.sound_row(node); }
  void distances(const uint32_t* ids, int count, float* out) const {
    segment.space.distances(query, segment.rows(), ids, count, out);
  }
};

struct Changing {
  const LiveSegment& segment;
  const float* query;
  const LiveSegment::Scratch& scratch;

  size_t size() const { return scratch.limit; }
  const std::vector<uint32_t>& entries() const { return scratch.entries; }
  const uint32_t* links(uint32_t node, uint32_t* buffer, int& count) const {
    const int all = segment.copy_links(node, buffer);
    count = 0;
    for (int i = 0; i < all; ++i)
      if (buffer[i] < scratch.limit) buffer[count++] = buffer[i];
    return buffer;
  }
  void fetch(uint32_t node) const { prefetch_links(segment.segment(), node); }
  bool sound_row(uint32_t node) const { return node < scratch.limit; }
  void distances(const uint32_t* ids, int count, float* out) const {
    segment.space().distances(query, segment.segment().rows(), ids, count, out);
  }
};

}  // namespace

Answer Index::search_filtered(const float* query, Request request, const Filter& filter, float& share) {
  Answer answer;
  share = 1;
  if (size() == 0) return answer;
  request.threads = 1;
  request.kept = request.k;
  std::unique_ptr<Context> context = borrow();
  context->vector.resize(static_cast<size_t>(space_.dims));
  space_.prepare(query, context->vector.data(), true);
  if (sealed_ && filter.way == Way::check) {
    context->visited.reset(size() + 1);
    search_sealed(*context, request, &filter.allowed, answer);
    const Pool& pool = context->query.lane(0).pool;
    const auto passing = std::count_if(pool.begin(), pool.begin() + pool.size(), [&](Entry e) { return filter.allowed(id_of(e)); });
    if (pool.size() > 0) share = static_cast<float>(passing) / static_cast<float>(pool.size());
  } else {
    context->query.reset(request);
    const Fixed graph{*segment_, context->vector.data()};
    share = FilteredSearch(graph, filter.allowed, context->query, context->visited).run(filter);
    gather(context->query, true, request.k, context->merged, answer.nearest);
  }
  answer.counts = total(context->query);
  give_back(std::move(context));
  if (segment_->guard != nullptr) segment_->guard->raise();
  return answer;
}

LiveSegment::Found LiveSegment::search_filtered(const float* query, Request request, const Filter& filter, bool frozen,
                                                uint64_t turnover, float& share) {
  Found found;
  const Pin scratch(*this);
  // A repair counts up before it waits for those that run: a slot of this search is either not used again or noticed here.
  if (this->turnover() != turnover) throw StaleError("slots were freed since the rows were chosen");
  space_.prepare(query, scratch->vector.data(), true);
  request.threads = 1;
  request.kept = 2 * request.k;  // while a row is replaced both may be there
  scratch->query.reset(request);
  const Changing graph{*this, scratch->vector.data(), *scratch};
  const auto answers = [&](uint32_t i) { return filter.allowed(i) && (frozen || state(i) == kLive); };
  share = FilteredSearch(graph, answers, scratch->query, scratch->visited).run(filter);
  std::vector<Entry> nearest;
  gather(scratch->query, true, request.kept, scratch->merged, nearest);
  found.counts = total(scratch->query);
  pick(nearest, static_cast<size_t>(request.k), frozen, found);
  return found;
}

}  // namespace statepool::graph
