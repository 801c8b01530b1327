#include "build.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "pool.h"
#include "prune.h"
#include "walk.h"

namespace statepool::graph {
namespace {

struct Scratch {
  Visited visited;
  Pool pool;
  Hits hits;
  std::vector<Entry> candidates;
  std::vector<float> center, other;
  std::vector<uint32_t> chosen;
};

// Distances between rows: the graph's own geometry, not the user's metric.
struct RowWalk {
  const Segment& segment;
  const float* from;
  Visited& visited;

  void expand(uint32_t node, Hits& hits) const {
    const uint32_t* links = segment.links(node);
    hits.count = 0;
    for (int i = 0; i < segment.degree && links[i] != kNone; ++i)
      if (visited.claim(links[i])) hits.ids[hits.count++] = links[i];
    segment.squared(from, hits.ids, hits.count, hits.distances);
  }
};

void take(Pool& pool, const Hits& hits) {
  for (int i = 0; i < hits.count; ++i) pool.insert(entry_of(hits.distances[i], hits.ids[i]));
}

class Builder {
 public:
  Builder(Segment& segment, const BuildOptions& options) : segment_(segment), options_(options) {
    scratch_.resize(static_cast<size_t>(options.threads));
    for (Scratch& scratch : scratch_) {
      scratch.center.resize(static_cast<size_t>(segment.space.dims));
      scratch.other.resize(static_cast<size_t>(segment.space.dims));
    }
  }

  void run() {
    const size_t count = segment_.size();
    segment_.entries = {medoid()};
    spread();
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    std::swap(order[0], order[segment_.entries[0]]);
    shuffle(order);
    const size_t largest = std::max<size_t>(1, count / 50);
    for (size_t done = 1; done < count;) {
      const size_t batch = std::min({done, largest, count - done});
      insert(order.data() + done, batch);
      done += batch;
      if (options_.progress != nullptr) options_.progress->store(done, std::memory_order_relaxed);
    }
    connect();
  }

 private:
  template <class Work>
  void parallel(size_t count, Work work) {
    std::atomic<size_t> next{0};
    std::exception_ptr failure;
    std::mutex failed;
    const auto loop = [&](Scratch& scratch) {
      try {
        for (size_t i = next++; i < count; i = next++) work(i, scratch);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(failed);
        failure = std::current_exception();
      }
    };
    std::vector<std::thread> helpers;
    const size_t wanted = std::min(scratch_.size(), count / 16 + 1);
    for (size_t t = 1; t < wanted; ++t) helpers.emplace_back([&, t] { loop(scratch_[t]); });
    loop(scratch_[0]);
    for (std::thread& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
  }

  // The row nearest to the mean of all.
  uint32_t medoid() {
    const size_t count = segment_.size(), dims = static_cast<size_t>(segment_.space.dims);
    std::vector<double> sum(dims);
    std::vector<float> mean(dims), buffer(dims);
    for (uint32_t node = 0; node < count; ++node) {
      const float* row = segment_.floats(node, buffer.data());
      for (size_t i = 0; i < dims; ++i) sum[i] += row[i];
    }
    for (size_t i = 0; i < dims; ++i) mean[i] = static_cast<float>(sum[i] / static_cast<double>(count));
    Entry best = entry_of(std::numeric_limits<float>::infinity(), 0);
    for (uint32_t node = 0; node < count; ++node) {
      float distance;
      segment_.squared(mean.data(), &node, 1, &distance);
      best = std::min(best, entry_of(distance, node));
    }
    return id_of(best);
  }

  // More entries: rows near the centres of a short k-means over a sample, so that a search starts near its goal.
  void spread() {
    constexpr size_t kCenters = 32, kSample = 4096;
    constexpr int kRounds = 6;
    const size_t count = segment_.size(), dims = static_cast<size_t>(segment_.space.dims);
    if (count < 2 * kCenters) return;
    const size_t step = std::max<size_t>(1, count / kSample), sample = count / step;
    std::vector<float> centers(kCenters * dims), buffer(dims);
    std::vector<uint32_t> ids(sample);
    for (size_t i = 0; i < sample; ++i) ids[i] = static_cast<uint32_t>(i * step);
    for (size_t c = 0; c < kCenters; ++c)
      std::copy_n(segment_.floats(ids[c * sample / kCenters], buffer.data()), dims, centers.data() + c * dims);
    std::vector<float> least(sample), gaps(sample);
    std::vector<size_t> owner(sample);
    for (int round = 0; round <= kRounds; ++round) {
      std::vector<Entry> nearest(kCenters, kNoBound);
      std::fill(least.begin(), least.end(), std::numeric_limits<float>::infinity());
      for (size_t c = 0; c < kCenters; ++c) {
        segment_.squared(centers.data() + c * dims, ids.data(), static_cast<int>(sample), gaps.data());
        for (size_t i = 0; i < sample; ++i) {
          nearest[c] = std::min(nearest[c], entry_of(gaps[i], ids[i]));
          if (gaps[i] < least[i]) {
            least[i] = gaps[i];
            owner[i] = c;
          }
        }
      }
      if (round == kRounds) {
        for (const Entry entry : nearest)
          if (std::find(segment_.entries.begin(), segment_.entries.end(), id_of(entry)) == segment_.entries.end() &&
              segment_.entries.size() < kCenters)
            segment_.entries.push_back(id_of(entry));
        return;
      }
      std::vector<double> sums(kCenters * dims);
      std::vector<size_t> members(kCenters);
      for (size_t i = 0; i < sample; ++i) {
        const float* row = segment_.floats(ids[i], buffer.data());
        for (size_t d = 0; d < dims; ++d) sums[owner[i] * dims + d] += row[d];
        ++members[owner[i]];
      }
      for (size_t c = 0; c < kCenters; ++c)
        for (size_t d = 0; d < dims && members[c] > 0; ++d)
          centers[c * dims + d] = static_cast<float>(sums[c * dims + d] / static_cast<double>(members[c]));
    }
  }

  // Everything but the first, by a generator of our own: std::shuffle differs between libraries.
  void shuffle(std::vector<uint32_t>& order) const {
    std::mt19937_64 random(options_.seed);
    for (size_t i = order.size() - 1; i > 1; --i) std::swap(order[i], order[1 + random() % i]);
  }

  void insert(const uint32_t* nodes, size_t count) {
    parallel(count, [&](size_t i, Scratch& scratch) { link(nodes[i], scratch); });
    std::vector<std::pair<uint32_t, uint32_t>> back;  // (whose list, who wants to be in it)
    for (size_t i = 0; i < count; ++i)
      for (int k = 0; k < segment_.degree && segment_.links(nodes[i])[k] != kNone; ++k)
        back.emplace_back(segment_.links(nodes[i])[k], nodes[i]);
    std::sort(back.begin(), back.end());
    std::vector<size_t> starts;
    for (size_t i = 0; i < back.size(); ++i)
      if (i == 0 || back[i].first != back[i - 1].first) starts.push_back(i);
    parallel(starts.size(), [&](size_t s, Scratch& scratch) {
      const size_t end = s + 1 < starts.size() ? starts[s + 1] : back.size();
      link_back(back.data() + starts[s], end - starts[s], scratch);
    });
  }

  void link(uint32_t node, Scratch& scratch) {
    explore(node, scratch);
    prune(node, scratch);
  }

  // Candidates for neighbours of a node: what a search for it expands, by distance.
  void explore(uint32_t node, Scratch& scratch) {
    const float* from = segment_.floats(node, scratch.center.data());
    scratch.visited.reset(segment_.size());
    scratch.visited.claim(node);
    scratch.pool.reset(options_.window);
    const RowWalk walk{segment_, from, scratch.visited};
    Hits& hits = scratch.hits;
    hits.count = 1;
    hits.ids[0] = segment_.entries[0];
    scratch.visited.claim(hits.ids[0]);
    segment_.squared(from, hits.ids, 1, hits.distances);
    take(scratch.pool, hits);
    scratch.candidates.clear();
    for (int i = scratch.pool.next(); i < scratch.pool.size(); i = scratch.pool.next()) {
      scratch.candidates.push_back(scratch.pool.at(i));
      scratch.pool.mark(i);
      walk.expand(id_of(scratch.pool.at(i)), hits);
      take(scratch.pool, hits);
    }
    std::sort(scratch.candidates.begin(), scratch.candidates.end());
  }

  // Lead to every row. Those that no list has left, like the copies of a row of which its neighbours keep one, each join the
  // list of a near row.
  void connect() {
    const size_t count = segment_.size(), degree = static_cast<size_t>(segment_.degree);
    std::vector<uint32_t> parent(count, kNone), reached;  // of a row: whose list leads to it first
    size_t seen = 0;
    const auto flood = [&](uint32_t from, uint32_t by) {
      parent[from] = by;
      for (reached.push_back(from); seen < reached.size(); ++seen) {
        const uint32_t* links = segment_.links(reached[seen]);
        for (size_t k = 0; k < degree && links[k] != kNone; ++k)
          if (parent[links[k]] == kNone) {
            parent[links[k]] = reached[seen];
            reached.push_back(links[k]);
          }
      }
    };
    // Into a free place, or that of the last link which is nobody's only one; the first `kept` links stay.
    const auto take = [&](uint32_t owner, uint32_t node, size_t kept) {
      uint32_t* const links = segment_.links(owner);
      uint32_t* place = std::find(links, links + degree, kNone);
      if (place == links + degree) {
        do
          if (place == links + kept) return false;
        while (parent[*--place] == owner);
      }
      *place = node;
      flood(node, owner);
      return true;
    };
    for (const uint32_t entry : segment_.entries)
      if (parent[entry] == kNone) flood(entry, entry);
    size_t next = 0;  // of those reached, the first whose list may have a place left
    for (uint32_t node = 0; node < count; ++node) {
      if (parent[node] != kNone) continue;
      explore(node, scratch_[0]);
      const std::vector<Entry>& near = scratch_[0].candidates;
      if (std::any_of(near.begin(), near.end(), [&](Entry to) { return take(id_of(to), node, degree / 2); })) continue;
      while (!take(reached[next], node, 0)) ++next;
    }
  }

  void link_back(const std::pair<uint32_t, uint32_t>* wanted, size_t count, Scratch& scratch) {
    const uint32_t node = wanted[0].first;
    uint32_t* links = segment_.links(node);
    size_t used = 0;
    while (used < static_cast<size_t>(segment_.degree) && links[used] != kNone) ++used;
    if (used + count <= static_cast<size_t>(segment_.degree)) {
      for (size_t i = 0; i < count; ++i) links[used + i] = wanted[i].second;
      return;
    }
    std::vector<uint32_t> ids(links, links + used);
    for (size_t i = 0; i < count; ++i) ids.push_back(wanted[i].second);
    std::vector<float> distances(ids.size());
    segment_.squared(segment_.floats(node, scratch.center.data()), ids.data(), static_cast<int>(ids.size()),
                     distances.data());
    scratch.candidates.clear();
    for (size_t i = 0; i < ids.size(); ++i) scratch.candidates.push_back(entry_of(distances[i], ids[i]));
    std::sort(scratch.candidates.begin(), scratch.candidates.end());
    prune(node, scratch);
  }

  // Writes the node's list from the sorted candidates.
  void prune(uint32_t node, Scratch& scratch) {
    std::vector<uint32_t>& chosen = scratch.chosen;
    chosen.clear();
    graph::prune(segment_, node, scratch.candidates, options_.alpha, scratch.other.data(), chosen);
    uint32_t* links = segment_.links(node);
    for (size_t k = 0; k < static_cast<size_t>(segment_.degree); ++k) links[k] = k < chosen.size() ? chosen[k] : kNone;
  }

  Segment& segment_;
  const BuildOptions& options_;
  std::vector<Scratch> scratch_;
};

}  // namespace

void build(Segment& segment, const BuildOptions& options) {
  if (segment.size() == 0) return;
  Builder(segment, options).run();
}

}  // namespace statepool::graph
