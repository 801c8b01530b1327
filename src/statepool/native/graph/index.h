// The index behind the Python face: segments, the scratch of running searches, and the engines that search.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "query.h"
#include "sealed.h"
#include "segment.h"

namespace statepool::graph {

struct Allowed;
struct Filter;

struct Answer {
  std::vector<Entry> nearest;  // at most k, nearest first
  Counts counts;
};

// Everything one search needs besides the index; kept between searches.
struct Context {
  Visited visited;
  Query query;
  Pool merged;
  std::vector<float> vector, turned;
  std::vector<uint8_t> lookup;
  const void* user = nullptr;  // the thread that had it last: it lies in the cache of that one's core
};

// Move to the end the context that this thread had last, if it is there.
template <class Contexts>
void own_last(Contexts& contexts) {
  const void* user = this_thread();
  for (auto& one : contexts)
    if (one->user == user) return std::swap(one, contexts.back());
}

class Index {
 public:
  Index(const Space& space, int degree) : space_(space), degree_(degree) {}

  const Space& space() const { return space_; }
  int degree() const { return degree_; }
  size_t size() const { return segment_ ? segment_->size() : 0; }
  Segment* segment() { return segment_.get(); }

  std::atomic<uint64_t> built{0};  // nodes that a build has linked

  // Replace all by `count` raw vectors (space.dim floats each). Raises std::domain_error, naming the row.
  void load_rows(const float* rows, size_t count);
  // Search rows, links and (unless null) sealed rows where they lie. Raises std::out_of_range for an entry that is no row.
  void attach(const void* rows, const void* links, size_t count, std::vector<uint32_t> entries, float norm, const void* sealed,
              float unit, uint64_t seed, Guard* guard);
  // Quantise the neighbours of every node; searches use them from then on. Needs rows and links.
  void seal(int threads, uint64_t seed);
  const SealedSegment* sealed() const { return sealed_.get(); }
  // `query` holds space.dim floats. Both raise DamageError for a file that is damaged where they looked.
  Answer search(const float* query, const Request& request);
  Answer exact(const float* query, int k);
  // Among allowed rows; `share` of the candidates at the end that were allowed. See filtered.h.
  Answer search_filtered(const float* query, Request request, const Filter& filter, float& share);

 private:
  std::unique_ptr<Context> borrow();
  void give_back(std::unique_ptr<Context> context);

  Space space_;
  int degree_;
  void search_sealed(Context& context, const Request& request, const Allowed* allowed, Answer& answer);

  std::unique_ptr<Segment> segment_;
  std::unique_ptr<SealedSegment> sealed_;
  std::mutex contexts_mutex_;
  std::vector<std::unique_ptr<Context>> contexts_;
};

}  // namespace statepool::graph
