// The wave buffer (RetroInfer 4.3): clusters lie in a file, the recently read ones in memory too.
//
// A cluster is stored in pages of eight rows, each page its keys and then its values, and is read by one read. In memory its
// pages may lie anywhere. What is in memory never changes an answer, only how long it takes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace statepool {

constexpr int64_t kPageRows = 8;

// The file could not be read or written, or its bytes are not those that were written.
class TierFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One cluster: its place in the file, in memory, and among the recently used ones.
struct Slot {
  Slot *newer = nullptr, *older = nullptr;
  int64_t offset = 0;
  int32_t rows = 0;
  int32_t page = -1;  // the first of its pages in memory; -1 if it is not there
  uint32_t crc = 0;
};

// A cluster of a step that is not in memory.
struct Miss {
  Slot* slot;
  size_t run;        // where its rows stand among the head's runs
  const char* from;  // its bytes, once fetch() made room for them
};

// What one head of a step wants, in the order of the clusters' positions.
struct Wanted {
  std::vector<Slot*> slots;
  std::vector<Miss> misses;
};

struct CacheCounts {
  int64_t hits = 0, misses = 0, bytes_read = 0, reads = 0, evicted = 0;
};

class ClusterCache;

// The clusters of one segment, in the file until this is destroyed.
class StoredRows {
 public:
  StoredRows(std::shared_ptr<ClusterCache> cache, int64_t heads, int64_t clusters);
  ~StoredRows();
  StoredRows(const StoredRows&) = delete;
  StoredRows& operator=(const StoredRows&) = delete;

  Slot& slot(int64_t head, int64_t cluster) { return slots_[static_cast<size_t>(head * clusters_ + cluster)]; }
  int64_t heads() const { return heads_; }
  int64_t clusters() const { return clusters_; }
  int64_t memory() const { return static_cast<int64_t>(slots_.size() * sizeof(Slot)); }
  const std::shared_ptr<ClusterCache>& cache() const { return cache_; }

 private:
  friend class ClusterCache;
  std::shared_ptr<ClusterCache> cache_;
  int64_t heads_, clusters_, extent_ = -1, bytes_ = 0;
  std::vector<Slot> slots_;
};

class ClusterCache {
 public:
  // Takes over `fd`, a file that nobody else uses; a row has row_bytes, and 512 divides a page.
  ClusterCache(int fd, int64_t row_bytes, int64_t pages, bool background);
  ~ClusterCache();

  // Writes clusters that begin at offsets[head][cluster] of rows [heads][2 * tokens], cluster by cluster keys then values.
  static std::shared_ptr<StoredRows> store(std::shared_ptr<ClusterCache> cache, const char* rows, int64_t heads, int64_t tokens,
                                           const int32_t* offsets, int64_t clusters);

  // One step: open it, and hold the lock to its end; then, from any thread, settle, look up a head's clusters and fetch them,
  // wait for a head before its rows are used; finish. Reads of the first heads are under way while the last ones are looked up,
  // and until then the clusters of the step before find their places.
  std::unique_lock<std::mutex> open(size_t heads);
  void settle();
  const char* page(int32_t number) const { return pages_.get() + number * page_bytes_; }
  int32_t next(int32_t number) const { return next_[static_cast<size_t>(number)]; }
  void fetch(size_t head, Wanted& wanted);
  void wait(int64_t head);
  void finish(std::vector<Wanted>& wanted);

  int64_t page_bytes() const { return page_bytes_; }
  int64_t row_bytes() const { return row_bytes_; }
  int64_t capacity() const { return static_cast<int64_t>(next_.size()); }
  CacheCounts counts();

 private:
  friend class StoredRows;
  struct Job {
    std::vector<Miss*> parts;  // neighbours in the file
    int64_t head, bytes;
    char* to;
  };
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  using Memory = std::unique_ptr<char, Free>;

  static int64_t pages_of(int64_t rows) { return (rows + kPageRows - 1) / kPageRows; }
  int64_t bytes_of(const Slot& slot) const { return pages_of(slot.rows) * page_bytes_; }
  Memory aligned(int64_t bytes) const;
  size_t submit(std::deque<Job>::iterator first, size_t count);
  void reap();
  void read(Job& job);
  void check(Job& job);
  void fail(const Job& job, const std::string& why);
  void keep();
  std::unique_lock<std::mutex> begin();
  void admit();
  void touch(Slot& slot);
  void unlink(Slot& slot);
  void evict(Slot& slot);
  void drop(StoredRows& stored);
  int64_t reserve(int64_t bytes);

  const int fd_;
  const int64_t row_bytes_, page_bytes_;
  const bool background_;
  Memory pages_;
  std::vector<int32_t> next_, free_;
  Slot *newest_ = nullptr, *oldest_ = nullptr;
  int64_t held_ = 0;
  CacheCounts counts_;

  std::mutex step_;  // held through a step: one at a time
  struct Room {
    Memory memory;
    int64_t bytes = 0;
  };
  std::vector<Room> arrived_;  // what each head's reads fill

  std::mutex jobs_mutex_;
  std::condition_variable job_done_;
  std::deque<Job> jobs_;
  std::vector<int64_t> pending_;  // jobs of each head that are not done
  std::mutex failure_mutex_;
  std::string failure_;
  bool reaping_ = false;      // one thread waits for the kernel, the others for it
  unsigned long queue_ = 0;   // of asynchronous reads; 0 if the system has none

  std::mutex update_mutex_;
  std::condition_variable update_posted_, update_done_;
  std::vector<Wanted> update_;
  bool updating_ = false, update_stop_ = false;
  std::thread keeper_;

  int64_t file_end_ = 0;
  std::map<int64_t, std::vector<int64_t>> holes_;  // by size
};

}  // namespace statepool
