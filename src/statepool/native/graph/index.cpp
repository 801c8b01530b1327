#include "index.h"

#include <algorithm>
#include <string>

#include "engines.h"

namespace statepool::graph {
std::unique_ptr<Context> Index::borrow() {
  const std::lock_guard<std::mutex> lock(contexts_mutex_);
  if (contexts_.empty()) return std::make_unique<Context>();
  std::unique_ptr<Context> context = std::move(contexts_.back());
  contexts_.pop_back();
  return context;
}

void Index::give_back(std::unique_ptr<Context> context) {
  const std::lock_guard<std::mutex> lock(contexts_mutex_);
  contexts_.push_back(std::move(context));
}

void Index::load_rows(const float* rows, size_t count) {
  const size_t dim = static_cast<size_t>(space_.dim), dims = static_cast<size_t>(space_.dims);
  Space space = space_;
  if (space.metric == Metric::ip)
    for (size_t i = 0; i < count; ++i)
      space.norm = std::max(space.norm, static_cast<float>(Space::norm_of(rows + i * dim, space.dim)));
  auto segment = std::make_unique<Segment>(space, degree_, std::max<size_t>(count, 1));
  std::vector<float> prepared(dims);
  for (size_t i = 0; i < count; ++i) {
    try {
      space.prepare(rows + i * dim, prepared.data(), false);
    } catch (const std::domain_error& error) {
      throw std::domain_error("row " + std::to_string(i) + " " + error.what());
    }
    segment->append(prepared.data(), 1);
  }
  space_ = space;
  segment_ = std::move(segment);
}

void Index::adopt(const void* rows, const uint32_t* links, size_t count, uint32_t entry, float norm) {
  if (count > 0 && entry >= count) throw std::out_of_range("the entry is no row");
  for (size_t i = 0; i < count * static_cast<size_t>(degree_); ++i)
    if (links[i] != kNone && links[i] >= count) throw std::out_of_range("a link leads to no row");
  Space space = space_;
  space.norm = norm;
  auto segment = std::make_unique<Segment>(space, degree_, std::max<size_t>(count, 1));
  if (count > 0) {
    segment->adopt(rows, links, count);
    segment->entries = {entry};
  }
  space_ = space;
  segment_ = std::move(segment);
}

Answer Index::search(const float* query, const Request& request) {
  Answer answer;
  const size_t count = size();
  if (count == 0) return answer;
  std::unique_ptr<Context> context = borrow();
  context->vector.resize(static_cast<size_t>(space_.dims));
  space_.prepare(query, context->vector.data(), true);
  context->visited.reset(count);
  context->query.reset(request);
  context->query.entries = segment_->entries;
  const Walk walk{*segment_, context->vector.data(), context->visited};
  run_engine(walk, context->query);
  answer.counts = total(context->query);
  gather(context->query, false, context->merged, answer.nearest);
  give_back(std::move(context));
  return answer;
}

Answer Index::exact(const float* query, int k) {
  Answer answer;
  const size_t count = size();
  std::vector<float> prepared(static_cast<size_t>(space_.dims));
  space_.prepare(query, prepared.data(), true);
  std::vector<Entry>& nearest = answer.nearest;
  constexpr size_t kBlock = 64;
  uint32_t ids[kBlock];
  float distances[kBlock];
  for (size_t first = 0; first < count; first += kBlock) {
    const size_t some = std::min(kBlock, count - first);
    for (size_t i = 0; i < some; ++i) ids[i] = static_cast<uint32_t>(first + i);
    space_.distances(prepared.data(), segment_->rows(), ids, static_cast<int>(some), distances);
    for (size_t i = 0; i < some; ++i) {
      const Entry entry = entry_of(distances[i], ids[i]);
      if (nearest.size() == static_cast<size_t>(k)) {
        if (entry >= nearest.front()) continue;
        std::pop_heap(nearest.begin(), nearest.end());
        nearest.pop_back();
      }
      nearest.push_back(entry);
      std::push_heap(nearest.begin(), nearest.end());
    }
  }
  std::sort_heap(nearest.begin(), nearest.end());
  answer.counts.distances = answer.counts.most = count;
  return answer;
}

}  // namespace statepool::graph
