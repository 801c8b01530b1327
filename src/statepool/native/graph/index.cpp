#include "index.h"

#include <algorithm>
#include <string>

#include "engines.h"

namespace statepool::graph {
namespace {

struct Busy {
  explicit Busy(const Request& request) : threads(request.granted ? 0 : request.threads) {
    if (threads > 0) Cores::others.fetch_add(threads, std::memory_order_relaxed);
  }
  ~Busy() {
    if (threads > 0) Cores::others.fetch_sub(threads, std::memory_order_relaxed);
  }
  const int threads;
};

constexpr int kSpare = 8;  // candidates beyond k that are measured at stored precision

}  // namespace

std::unique_ptr<Context> Index::borrow() {
  const std::lock_guard<std::mutex> lock(contexts_mutex_);
  if (contexts_.empty()) return std::make_unique<Context>();
  own_last(contexts_);
  std::unique_ptr<Context> context = std::move(contexts_.back());
  contexts_.pop_back();
  return context;
}

void Index::give_back(std::unique_ptr<Context> context) {
  context->user = this_thread();
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
  sealed_.reset();
  segment_ = std::move(segment);
}

void Index::attach(const void* rows, const void* links, size_t count, std::vector<uint32_t> entries, float norm,
                   const void* sealed, float unit, uint64_t seed, Guard* guard) {
  if (entries.empty()) throw std::out_of_range("there is no entry");
  for (const uint32_t entry : entries)
    if (entry >= count) throw std::out_of_range("an entry is no row");
  space_.norm = norm;
  sealed_.reset();
  segment_ = std::make_unique<Segment>(space_, degree_, count, rows, links, guard);
  segment_->entries = std::move(entries);
  if (sealed != nullptr) sealed_ = std::make_unique<SealedSegment>(*segment_, sealed, unit, seed);
}

Answer Index::search(const float* query, const Request& request) {
  Answer answer;
  const size_t count = size();
  if (count == 0) return answer;
  const Busy busy(request);
  std::unique_ptr<Context> context = borrow();
  context->vector.resize(static_cast<size_t>(space_.dims));
  space_.prepare(query, context->vector.data(), true);
  context->visited.reset(count + 1);
  if (sealed_) {
    search_sealed(*context, request, nullptr, answer);
  } else {
    context->query.reset(request);
    const Walk walk{*segment_, context->vector.data(), context->visited};
    run_engine(walk, context->query);
    gather(context->query, false, request.k, context->merged, answer.nearest);
  }
  answer.counts = total(context->query);
  give_back(std::move(context));
  if (segment_->guard != nullptr) segment_->guard->raise();
  return answer;
}

void Index::search_sealed(Context& context, const Request& request, const Allowed* allowed, Answer& answer) {
  const SealedSegment& sealed = *sealed_;
  const size_t dims = static_cast<size_t>(sealed.dims());
  context.turned = context.vector;
  context.lookup.resize(4 * dims);
  sealed.turn(context.turned.data());
  SealedWalk walk{sealed, context.turned.data(), context.lookup.data(), 0, 0, 0, context.visited, request.threads == 1,
                  allowed};
  scan_kernels().tables(walk.query, sealed.tables(), context.lookup.data(), &walk.delta, &walk.offset);
  walk.square = static_cast<float>(Space::square_of(walk.query, sealed.dims()));
  Request wider = request;
  wider.kept = std::min(request.width, request.k + kSpare);
  context.query.reset(wider);
  run_engine(walk, context.query);
  gather(context.query, true, wider.kept, context.merged, answer.nearest);
  // Eight bits chose these; the stored precision orders them. Spares that rounding cannot have kept from the k are not read.
  const size_t k = static_cast<size_t>(request.k);
  while (answer.nearest.size() > k && distance_of(answer.nearest.back()) - sealed.doubt(answer.nearest.back()) >
                                          distance_of(answer.nearest[k - 1]))
    answer.nearest.pop_back();
  const int count = static_cast<int>(answer.nearest.size());
  std::vector<uint32_t> ids(answer.nearest.size());
  std::vector<float> distances(answer.nearest.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = id_of(answer.nearest[i]);
    segment_->sound_row(ids[i]);
  }
  space_.distances(context.vector.data(), segment_->rows(), ids.data(), count, distances.data());
  for (size_t i = 0; i < ids.size(); ++i) answer.nearest[i] = entry_of(distances[i], ids[i]);
  std::sort(answer.nearest.begin(), answer.nearest.end());
  if (answer.nearest.size() > k) answer.nearest.resize(k);
}

void Index::seal(int threads, uint64_t seed) {
  sealed_.reset();
  sealed_ = std::make_unique<SealedSegment>(*segment_, threads, seed);
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
    for (size_t i = 0; i < some; ++i) {
      ids[i] = static_cast<uint32_t>(first + i);
      segment_->sound_row(ids[i]);
    }
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
  if (segment_ && segment_->guard != nullptr) segment_->guard->raise();
  std::sort_heap(nearest.begin(), nearest.end());
  answer.counts.distances = answer.counts.most = count;
  return answer;
}

}  // namespace statepool::graph
