// A front-end: structure code on one machine, the heap on another (paper, sections 3-5).
//
// It is a Mem like the Heap, so the same structures run on it. Reads come from a cache of pages, or by one remote read
// per object; writes change the cached pages and are gathered in a memory log, which travels as one transaction. The
// three mechanisms are switches, so that what each of them buys can be measured:
//   operation_log  an operation is durable by one remote write of its record; its memory log travels behind it
//   cache          pages outlive the operation that read them
//   batch          memory logs of many operations travel as one
#pragma once

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "heap.h"
#include "operation.h"
#include "page_cache.h"

namespace statepool::store {

// What a front-end asks of the machine that holds the heap. Everything is one-sided but allocate().
class Port {
 public:
  struct Write {
    Addr at;
    uint32_t offset, size;  // of the bytes in the log's buffer
  };
  virtual ~Port() = default;
  struct Read {
    Addr at;
    size_t size;
    std::byte* out;
  };
  virtual void read(Addr a, void* out, size_t n) = 0;             // one round trip
  virtual void read_all(const std::vector<Read>& reads) = 0;      // together: one round trip for all of them
  virtual void append(Bytes record) = 0;                          // persist one operation record: one round trip
  virtual void write(Addr a, const void* bytes, size_t n) = 0;    // persist in place: one round trip
  // Persist and apply a whole memory log; `wait`: for its acknowledgement, one round trip.
  virtual void transact(const std::vector<Write>& log, const std::vector<std::byte>& bytes, bool wait) = 0;
  virtual Addr allocate_block(size_t n) = 0;                      // first tier: whole blocks, one call
  virtual void release_block(Addr a, size_t n) = 0;
};

struct FrontendOptions {
  bool operation_log = true, cache = true, batch = true;
  size_t page = 256;            // bytes; a power of two
  size_t cache_pages = 1 << 16;
  size_t batch_operations = 1024;
  bool slabs = true;            // false: one call per allocation, as without the allocator's second tier
};

// Items of a hash table that are asked for often lie anywhere: most of a larger page in the cache would be others. What is
// forgotten with the operation only has to be read at once.
inline size_t page_of(Kind kind, bool cached) { return kind == Kind::dict && cached ? 64 : FrontendOptions{}.page; }

class Frontend {
 public:
  Frontend(Port& port, const FrontendOptions& options)
      : port_(port), options_(options), cache_(options.page, options.cache ? options.cache_pages : 0) {}

  // ---- as a Mem ----------------------------------------------------------------------------------------------------
  uint64_t load(Addr a) const { return load_as<uint64_t>(page(a) + (a & (options_.page - 1))); }
  void read(Addr a, void* out, size_t n) const {
    touch(a, n);
    auto* to = static_cast<std::byte*>(out);
    spans(a, n, [&](Addr at, size_t size) {
      std::memcpy(to, page(at) + (at & (options_.page - 1)), size);
      to += size;
    });
  }
  int compare(Addr a, size_t n, Bytes key) const {
    thread_local std::string held;
    held.resize(n);
    read(a, held.data(), n);
    const int sign = std::memcmp(held.data(), key.data(), std::min(n, key.size()));
    return sign != 0 ? sign : n == key.size() ? 0 : n < key.size() ? -1 : 1;
  }
  void touch(Addr a, size_t n) const {
    if (a == 0 || (a & 7) != 0) throw Torn{};
    if (!unsent_.empty()) send_before_reading(a, n);
    if (gathering_) {
      if (cache_.missing(a, n, wanted_)) throw Missing{};
      return;
    }
    cache_.fetch(a, n, [&](Addr from, std::byte* out, size_t size) { port_.read(from, out, size); });
  }
  void store(Addr a, uint64_t value) { write(a, &value, 8); }
  void write(Addr a, const void* bytes, size_t n) {
    const size_t whole = round_up(n, 8);
    const auto offset = static_cast<uint32_t>(bytes_.size());
    bytes_.resize(bytes_.size() + whole);
    std::memcpy(bytes_.data() + offset, bytes, n);
    // What goes on from the entry before is one entry with it.
    if (!log_.empty() && log_.back().at + log_.back().size == a && log_.back().offset + log_.back().size == offset)
      log_.back().size += static_cast<uint32_t>(whole);
    else
      log_.push_back({a, offset, static_cast<uint32_t>(whole)});
    const std::byte* from = bytes_.data() + offset;
    spans(a, whole, [&](Addr at, size_t size) {
      cache_.put(at, from, size);
      unsent_.insert(at / options_.page);
      from += size;
    });
  }
  void fill(Addr a, const void* bytes, size_t n) { write(a, bytes, n); }
  void fill(Addr a, uint64_t value) { write(a, &value, 8); }
  void change(Addr) {}  // the heap's side does this around its apply
  void change(Addr, uint64_t) {}
  uint64_t lsn() const { return lsn_; }
  bool unseen(uint64_t lsn) const { return lsn == lsn_; }
  Addr allocate(size_t n);
  void release(Addr a, size_t n);

  // ---- operations --------------------------------------------------------------------------------------------------
  void record(Bytes operation);  // makes an operation durable, if there is an operation log
  void end();                    // of an operation or a batch: its memory log goes out
  // Brings to the cache what `probe(i)`, a read of the structures, needs for each i below `count`. The probes walk side
  // by side: whatever all of them lack next is read together, so a batch waits as often as its longest walk is deep.
  template <class Probe>
  void gather(size_t count, Probe&& probe) {
    if (!cache_.keeps()) return;
    std::vector<size_t> open(count), left;
    for (size_t i = 0; i < count; ++i) open[i] = i;
    // Walks that need more pages than there is room for take them from each other, and would do so for ever.
    int rounds = 0;
    for (gathering_ = true; !open.empty() && ++rounds <= kDeepest; open.swap(left)) {
      left.clear();
      for (const size_t i : open) {
        try {
          probe(i);
        } catch (const Missing&) {
          left.push_back(i);
        }
      }
      if (!read_wanted()) break;
    }
    gathering_ = false;
  }
  void forget();                 // without a cache, pages are forgotten at the end of each operation

  const FrontendOptions& options() const { return options_; }

 private:
  const std::byte* page(Addr a) const {
    const std::byte* found = cache_.find(a);
    if (found != nullptr) return found;
    touch(a & ~Addr{7}, 8);
    return cache_.find(a);
  }
  template <class Visit>
  void spans(Addr a, size_t n, Visit&& visit) const {
    while (n > 0) {
      const size_t size = std::min(n, options_.page - (a & (options_.page - 1)));
      visit(a, size);
      a += size;
      n -= size;
    }
  }

  static constexpr int kDeepest = 64;  // a walk that is longer goes on alone
  struct Missing {};
  bool read_wanted();
  void send_before_reading(Addr a, size_t n) const;
  void send(bool wait) const;

  Port& port_;
  FrontendOptions options_;
  mutable PageCache cache_;
  mutable std::vector<Port::Write> log_;        // the memory log, and
  mutable std::vector<std::byte> bytes_;        // its values
  mutable std::unordered_set<Addr> unsent_;     // pages it writes to
  struct Slab {
    std::vector<Addr> free;
    Addr next = 0, end = 0;
  };
  std::unordered_map<size_t, Slab> slabs_;  // second tier of the allocator: objects of one size class each
  uint64_t lsn_ = 0;
  bool gathering_ = false;
  mutable std::vector<Addr> wanted_;  // pages that gather() reads next
};

}  // namespace statepool::store
