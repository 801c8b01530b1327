// The four arms of the paper's ablation, as switches of the front-end that is shipped, over the simulated port.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <chrono>
#include <cmath>
#include <list>
#include <random>

#include "deferred.h"
#include "region.h"
#include "sim_port.h"

namespace nb = nanobind;
using namespace statepool::store;

namespace {

struct Load {
  uint64_t items, operations, seed;
  int write_percent;
  double theta;  // skew of the Zipf distribution of keys
};

// Zipf-distributed ranks (Gray et al., SIGMOD 1994), scattered over the keys.
class Zipf {
 public:
  Zipf(uint64_t n, double theta) : n_(n), theta_(theta) {
    for (uint64_t i = 1; i <= n; ++i) zeta_ += 1 / std::pow(static_cast<double>(i), theta);
    const double two = 1 + std::pow(0.5, theta);
    eta_ = (1 - std::pow(2.0 / static_cast<double>(n), 1 - theta)) / (1 - two / zeta_);
  }
  uint64_t operator()(std::mt19937_64& random) const {
    const double u = std::uniform_real_distribution<double>()(random), uz = u * zeta_;
    uint64_t rank = 0;
    if (uz >= 1) rank = uz < 1 + std::pow(0.5, theta_) ? 1 : static_cast<uint64_t>(static_cast<double>(n_) * std::pow(eta_ * u - eta_ + 1, 1 / (1 - theta_)));
    return std::min(rank, n_ - 1) * 0x9e3779b97f4a7c15 % n_;
  }

 private:
  uint64_t n_;
  double theta_, zeta_ = 0, eta_;
};

std::string key_of_rank(uint64_t rank) {
  char key[17];
  std::snprintf(key, sizeof(key), "%016llx", static_cast<unsigned long long>(rank * 0x9e3779b97f4a7c15));
  return {key, 16};
}

const std::string kValue(64, 'v');

// Drives one structure; both return how many reads found something, so that arms can be compared.
template <class Deferred>
uint64_t drive_map(Deferred& structure, const Load& load) {
  std::mt19937_64 random(load.seed);
  const Zipf zipf(load.items, load.theta);
  uint64_t found = 0;
  std::string value;
  for (uint64_t i = 0; i < load.operations; ++i) {
    const std::string key = key_of_rank(zipf(random));
    if (static_cast<int>(random() % 100) < load.write_percent) structure.put(key, kValue);
    else found += structure.get(key, value) ? 1 : 0;
  }
  structure.flush();
  return found;
}

template <class Deferred>
uint64_t drive_ends(Deferred& structure, const Load& load) {
  std::mt19937_64 random(load.seed);
  uint64_t found = 0;
  std::string value;
  for (uint64_t i = 0; i < load.operations; ++i) {
    if (static_cast<int>(random() % 100) >= load.write_percent) found += structure.peek(value) ? 1 : 0;
    else if (random() % 2 == 0) structure.put(kValue);
    else found += structure.take(value) ? 1 : 0;
  }
  structure.flush();
  return found;
}

template <class S>
void fill(Heap& heap, S& structure, Addr root, const Load& load) {
  for (uint64_t i = 0; i < load.items; ++i) {
    heap.set_lsn(i + 1);
    heap.change(root);
    if constexpr (has_versions<S>) structure.collect(structure.version());
    if constexpr (is_map<S>) structure.put(key_of_rank(i), kValue);
    else if constexpr (is_stack<S>) structure.push(kValue);
    else {
      uint64_t sequence = 0;
      structure.put(kValue, {}, sequence);
    }
    heap.commit();
  }
}

template <template <class> class S, class Deferred, class Drive>
nb::dict measure(Kind kind, const FrontendOptions& options, const Load& load, double cache_share, Drive&& drive) {
  constexpr uint64_t kCapacity = 2ull << 30, kSide = 32 << 20;
  const Region region = Region::anonymous(Heap::region_size(kCapacity, kSide, kSector));
  Heap::prepare(region.data(), kCapacity, kSide, kSector);
  Heap heap(region.data(), true);
  const Addr root = create_structure(heap, kind);
  heap.commit();
  S<Heap> local(heap, root);
  fill(heap, local, root, load);

  FrontendOptions own = options;
  own.cache_pages = static_cast<size_t>(static_cast<double>(heap.header().used_bytes) * cache_share / static_cast<double>(own.page));
  SimPort port(heap, SimTiming{});
  Frontend frontend(port, own);
  Deferred structure(frontend, root);
  Load before = load;
  ++before.seed;
  drive(structure, before);  // so that the cache holds what it will
  port.reads = port.appends = port.writes = port.transactions = port.calls = port.posts = port.nanoseconds = 0;
  const auto started = std::chrono::steady_clock::now();
  const uint64_t found = drive(structure, load);
  const auto cpu = std::chrono::steady_clock::now() - started;
  nb::dict out;
  out["found"] = found;
  out["reads"] = port.reads;
  out["appends"] = port.appends;
  out["writes"] = port.writes;
  out["transactions"] = port.transactions;
  out["calls"] = port.calls;
  out["posts"] = port.posts;
  out["simulated_ns"] = port.nanoseconds;
  out["cpu_ns"] = std::chrono::duration_cast<std::chrono::nanoseconds>(cpu).count();
  out["size"] = local.size();
  return out;
}

template <template <class> class S>
nb::dict measure_map(Kind kind, const FrontendOptions& options, const Load& load, double cache_share) {
  using Deferred = DeferredMap<S>;
  return measure<S, Deferred>(kind, options, load, cache_share, drive_map<Deferred>);
}

nb::dict ablation(int kind_number, bool operation_log, bool cache, bool batch, uint64_t items, uint64_t operations,
                  int write_percent, double theta, double cache_share, uint64_t seed) {
  FrontendOptions options;
  options.operation_log = operation_log;
  options.cache = cache;
  options.batch = batch;
  const Load load{items, operations, seed, write_percent, theta};
  const auto kind = static_cast<Kind>(kind_number);
  options.page = page_of(kind, cache);
  switch (kind) {
    case Kind::dict: return measure_map<HashTable>(kind, options, load, cache_share);
    case Kind::sorted_dict: return measure_map<BPlusTree>(kind, options, load, cache_share);
    case Kind::skip_list: return measure_map<SkipList>(kind, options, load, cache_share);
    case Kind::bst: return measure_map<Bst>(kind, options, load, cache_share);
    case Kind::mv_bst: return measure_map<MvBst>(kind, options, load, cache_share);
    case Kind::mv_sorted_dict: return measure_map<MvBPlusTree>(kind, options, load, cache_share);
    case Kind::stack: {
      using Deferred = DeferredEnds<Stack<Frontend>, true>;
      return measure<Stack, Deferred>(kind, options, load, cache_share, drive_ends<Deferred>);
    }
    case Kind::queue: {
      using Deferred = DeferredEnds<Queue<Frontend>, false>;
      return measure<Queue, Deferred>(kind, options, load, cache_share, drive_ends<Deferred>);
    }
  }
  throw StoreError(Fault::invalid, "kind: no such structure");
}

// Objects of 64 B to 4 KiB, some of them released again, with and without the allocator's second tier.
nb::dict allocations(bool slabs, uint64_t objects, uint64_t seed) {
  constexpr uint64_t kCapacity = 2ull << 30, kSide = 32 << 20;
  const Region region = Region::anonymous(Heap::region_size(kCapacity, kSide, kSector));
  Heap::prepare(region.data(), kCapacity, kSide, kSector);
  Heap heap(region.data(), true);
  FrontendOptions options;
  options.slabs = slabs;
  SimPort port(heap, SimTiming{});
  Frontend frontend(port, options);
  std::mt19937_64 random(seed);
  std::vector<std::pair<Addr, size_t>> held;
  for (uint64_t i = 0; i < objects; ++i) {
    if (!held.empty() && random() % 3 == 0) {
      frontend.release(held.back().first, held.back().second);
      held.pop_back();
    }
    const size_t size = 64 + random() % (4096 - 64);
    held.emplace_back(frontend.allocate(size), size);
  }
  nb::dict out;
  out["calls"] = port.calls;
  out["simulated_ns"] = port.nanoseconds;
  return out;
}

// What PageCache is compared with: every page in the order of its last use.
class LruCache {
 public:
  LruCache(size_t page, size_t pages) : page_(page), room_(pages) {}
  template <class Read>
  void fetch(Addr a, size_t n, Read&& read) {
    const auto [found, fresh] = index_.try_emplace(a / page_, order_.begin());
    if (!fresh) return order_.splice(order_.begin(), order_, found->second);
    size_t at = order_.size();
    if (at < room_) {
      data_.resize(data_.size() + page_);
      order_.emplace_front(a / page_, at);
    } else {
      order_.splice(order_.begin(), order_, std::prev(order_.end()));
      index_.erase(order_.front().first);
      order_.front().first = a / page_;
      at = order_.front().second;
    }
    found->second = order_.begin();
    read(a, data_.data() + at * page_, n);
  }

 private:
  size_t page_, room_;
  std::list<std::pair<Addr, size_t>> order_;  // page number, place
  std::unordered_map<Addr, std::list<std::pair<Addr, size_t>>::iterator> index_;
  std::vector<std::byte> data_;
};

// Misses and ns of reading the pages of `trace` (u32 each) in order.
std::pair<uint64_t, uint64_t> cache_trace(const nb::bytes& trace, size_t room, bool lru) {
  constexpr size_t kPage = 256;
  uint64_t misses = 0;
  const auto run = [&](auto&& cache) {
    const auto started = std::chrono::steady_clock::now();
    for (size_t i = 0; i + 4 <= trace.size(); i += 4)
      cache.fetch(load_as<uint32_t>(trace.c_str() + i) * kPage, kPage, [&](Addr a, std::byte* out, size_t n) {
        ++misses;
        std::memset(out, static_cast<int>(a / kPage), n);
      });
    return static_cast<uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now() - started).count());
  };
  const uint64_t ns = lru ? run(LruCache(kPage, room)) : run(PageCache(kPage, room));
  return {misses, ns};
}

}  // namespace

void bind_ablation(nb::module_& m) {
  m.def("ablation", &ablation, nb::arg("kind"), nb::arg("operation_log"), nb::arg("cache"), nb::arg("batch"),
        nb::arg("items"), nb::arg("operations"), nb::arg("write_percent"), nb::arg("theta"), nb::arg("cache_share"),
        nb::arg("seed"), "Round trips and simulated time of one structure on a front-end with these mechanisms on or off.");
  m.def("allocations", &allocations, nb::arg("slabs"), nb::arg("objects"), nb::arg("seed"),
        "Calls and simulated time of a front-end that allocates, with or without the second tier.");
  m.def("cache_trace", &cache_trace, nb::arg("trace"), nb::arg("room"), nb::arg("lru"),
        "Misses and ns of the page cache on a trace of page numbers, or of a true LRU.");
}
