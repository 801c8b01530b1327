#include "cluster_cache.h"

#include <sys/types.h>
#include <unistd.h>

#if defined(__linux__)
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "../store/crc32c.h"

namespace statepool {
namespace {

constexpr unsigned kQueue = 1024;       // reads under way at once; more are done one by one
constexpr int64_t kAlignment = 4096;    // of memory that a file is read into directly
constexpr int64_t kExtentPages = 64;    // extents are multiples of it, so that a freed one fits a later segment

std::string describe(const char* doing, int64_t bytes, int64_t offset, const std::string& why) {
  return std::string("slow tier: ") + doing + " " + std::to_string(bytes) + " bytes at " + std::to_string(offset) + " failed: " + why;
}

}  // namespace

StoredRows::StoredRows(std::shared_ptr<ClusterCache> cache, int64_t heads, int64_t clusters)
    : cache_(std::move(cache)), heads_(heads), clusters_(clusters), slots_(static_cast<size_t>(heads * clusters)) {}

StoredRows::~StoredRows() { cache_->drop(*this); }

ClusterCache::ClusterCache(int fd, int64_t row_bytes, int64_t pages, bool background)
    : fd_(fd), row_bytes_(row_bytes), page_bytes_(2 * kPageRows * row_bytes), background_(background) {
  if (row_bytes <= 0 || page_bytes_ % 512 != 0) throw std::invalid_argument("row_bytes: a page of 16 rows must be whole sectors of 512 bytes");
  if (pages < 0 || pages > INT32_MAX) throw std::invalid_argument("pages: must be between 0 and 2^31 - 1");
  pages_ = aligned(std::max<int64_t>(pages, 1) * page_bytes_);
  next_.resize(static_cast<size_t>(pages));
  for (int64_t i = pages; i-- > 0;) free_.push_back(static_cast<int32_t>(i));
#if defined(__linux__)
  if (syscall(SYS_io_setup, kQueue, &queue_) != 0) queue_ = 0;
#endif
  if (background) keeper_ = std::thread([this] { keep(); });
}

ClusterCache::~ClusterCache() {
  {
    const std::lock_guard<std::mutex> lock(update_mutex_);
    update_stop_ = true;
  }
  update_posted_.notify_all();
  if (keeper_.joinable()) keeper_.join();
#if defined(__linux__)
  if (queue_ != 0) syscall(SYS_io_destroy, queue_);
#endif
  close(fd_);
}

ClusterCache::Memory ClusterCache::aligned(int64_t bytes) const {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, static_cast<size_t>(bytes)) != 0) throw std::bad_alloc();
  return Memory(static_cast<char*>(memory));
}

int64_t ClusterCache::reserve(int64_t bytes) {
  const auto hole = holes_.find(bytes);
  if (hole != holes_.end() && !hole->second.empty()) {
    const int64_t at = hole->second.back();
    hole->second.pop_back();
    return at;
  }
  file_end_ += bytes;
  return file_end_ - bytes;
}

std::shared_ptr<StoredRows> ClusterCache::store(std::shared_ptr<ClusterCache> cache, const char* rows, int64_t heads, int64_t tokens,
                                                const int32_t* offsets, int64_t clusters) {
  ClusterCache& self = *cache;
  auto stored = std::make_shared<StoredRows>(cache, heads, clusters);
  const std::unique_lock<std::mutex> lock = self.begin();  // goes before `stored`, whose end takes it too
  int64_t most = 0, total = 0;
  for (int64_t h = 0; h < heads; ++h) {
    int64_t pages = 0;
    for (int64_t c = 0; c < clusters; ++c) {
      const int32_t* at = offsets + h * (clusters + 1) + c;
      stored->slot(h, c).rows = at[1] - at[0];
      pages += pages_of(at[1] - at[0]);
    }
    most = std::max(most, pages);
    total += pages;
  }
  const int64_t extent = kExtentPages * self.page_bytes_;
  stored->bytes_ = (total * self.page_bytes_ + extent - 1) / extent * extent;
  stored->extent_ = self.reserve(stored->bytes_);
  const Memory buffer = self.aligned(std::max<int64_t>(most, 1) * self.page_bytes_);
  int64_t at = stored->extent_;
  for (int64_t h = 0; h < heads; ++h) {
    const char* base = rows + h * 2 * tokens * self.row_bytes_;
    const int64_t first = at;
    std::memset(buffer.get(), 0, static_cast<size_t>(most * self.page_bytes_));
    for (int64_t c = 0; c < clusters; ++c) {
      Slot& slot = stored->slot(h, c);
      slot.offset = at;
      const int64_t begin = offsets[h * (clusters + 1) + c];
      const char *keys = base + 2 * begin * self.row_bytes_, *values = keys + slot.rows * self.row_bytes_;
      char* to = buffer.get() + (at - first);
      for (int64_t row = 0; row < slot.rows; row += kPageRows, to += self.page_bytes_) {
        const size_t count = static_cast<size_t>(std::min<int64_t>(kPageRows, slot.rows - row) * self.row_bytes_);
        std::memcpy(to, keys + row * self.row_bytes_, count);
        std::memcpy(to + kPageRows * self.row_bytes_, values + row * self.row_bytes_, count);
      }
      const int64_t bytes = self.bytes_of(slot);
      slot.crc = store::crc32c(buffer.get() + (at - first), static_cast<size_t>(bytes));
      at += bytes;
    }
    for (int64_t done = 0; done < at - first;) {
      const ssize_t wrote = pwrite(self.fd_, buffer.get() + done, static_cast<size_t>(at - first - done), first + done);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0) {
        const std::string why = wrote < 0 ? std::strerror(errno) : "nothing was written";
        throw TierFailure(describe("writing", at - first, first, why));
      }
      done += wrote;
    }
  }
  return stored;
}

void ClusterCache::drop(StoredRows& stored) {
  const std::unique_lock<std::mutex> lock = begin();
  for (Slot& slot : stored.slots_)
    if (slot.page >= 0) evict(slot);
  if (stored.extent_ >= 0) holes_[stored.bytes_].push_back(stored.extent_);
}

std::unique_lock<std::mutex> ClusterCache::begin() {
  std::unique_lock<std::mutex> lock(step_);
  settle();
  return lock;
}

// Waits until the last step's clusters have found their places: a page that is read must not be overwritten, and until then
// nobody looks up what is where.
void ClusterCache::settle() {
  if (!background_) return;
  std::unique_lock<std::mutex> lock(update_mutex_);
  update_done_.wait(lock, [this] { return !updating_; });
}

CacheCounts ClusterCache::counts() {
  const std::unique_lock<std::mutex> lock = begin();
  return counts_;
}

std::unique_lock<std::mutex> ClusterCache::open(size_t heads) {
  std::unique_lock<std::mutex> step(step_);
  const std::lock_guard<std::mutex> lock(jobs_mutex_);
  jobs_.clear();
  failure_.clear();
  pending_.assign(heads, 0);
  if (arrived_.size() < heads) arrived_.resize(heads);
  return step;
}

void ClusterCache::fetch(size_t head, Wanted& wanted) {
  int64_t bytes = 0;
  for (const Miss& miss : wanted.misses) bytes += bytes_of(*miss.slot);
  Room& room = arrived_[head];
  if (bytes > room.bytes) {
    room.memory = aligned(bytes);
    room.bytes = bytes;
  }
  const std::lock_guard<std::mutex> lock(jobs_mutex_);
  const size_t first = jobs_.size();
  char* to = room.memory.get();
  for (Miss& miss : wanted.misses) {
    miss.from = to;
    if (jobs_.size() == first || jobs_.back().parts.front()->slot->offset + jobs_.back().bytes != miss.slot->offset)
      jobs_.push_back({{}, static_cast<int64_t>(head), 0, to});
    jobs_.back().parts.push_back(&miss);
    jobs_.back().bytes += bytes_of(*miss.slot);
    to += bytes_of(*miss.slot);
  }
  const size_t count = jobs_.size() - first;
  counts_.hits += static_cast<int64_t>(wanted.slots.size() - wanted.misses.size());
  counts_.misses += static_cast<int64_t>(wanted.misses.size());
  counts_.bytes_read += bytes;
  counts_.reads += static_cast<int64_t>(count);
  const auto begin = jobs_.begin() + static_cast<int64_t>(first);
  const size_t queued = submit(begin, count);
  pending_[head] = static_cast<int64_t>(queued);
  for (size_t i = queued; i < count; ++i) read(jobs_[first + i]);
}

// Hands reads to the kernel; those from the returned count on it does not take.
size_t ClusterCache::submit(std::deque<Job>::iterator first, size_t count) {
#if defined(__linux__)
  if (queue_ == 0 || count == 0) return 0;
  std::vector<iocb> blocks(count);
  std::vector<iocb*> pointers(count);
  for (size_t i = 0; i < count; ++i, ++first) {
    iocb& block = blocks[i];
    block.aio_data = reinterpret_cast<uintptr_t>(&*first);
    block.aio_fildes = static_cast<uint32_t>(fd_);
    block.aio_lio_opcode = IOCB_CMD_PREAD;
    block.aio_buf = reinterpret_cast<uintptr_t>(first->to);
    block.aio_nbytes = static_cast<uint64_t>(first->bytes);
    block.aio_offset = first->parts.front()->slot->offset;
    pointers[i] = &block;
  }
  size_t done = 0;
  while (done < count) {
    const long taken = syscall(SYS_io_submit, queue_, static_cast<long>(count - done), pointers.data() + done);
    if (taken <= 0) break;
    done += static_cast<size_t>(taken);
  }
  return done;
#else
  static_cast<void>(first);
  return count * 0;
#endif
}

// Waits for at least one read; the caller is the one thread that does.
void ClusterCache::reap() {
#if defined(__linux__)
  io_event events[64];
  const long got = syscall(SYS_io_getevents, queue_, 1L, 64L, events, nullptr);
  for (long i = 0; i < got; ++i) {
    Job& job = *reinterpret_cast<Job*>(events[i].data);
    // What went wrong, a plain read tells best.
    if (events[i].res == job.bytes)
      check(job);
    else
      read(job);
  }
  const std::lock_guard<std::mutex> lock(jobs_mutex_);
  for (long i = 0; i < got; ++i) --pending_[static_cast<size_t>(reinterpret_cast<Job*>(events[i].data)->head)];
#endif
}

void ClusterCache::read(Job& job) {
  const int64_t offset = job.parts.front()->slot->offset;
  for (int64_t done = 0; done < job.bytes;) {
    const ssize_t got = pread(fd_, job.to + done, static_cast<size_t>(job.bytes - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return fail(job, got < 0 ? std::strerror(errno) : "the file ends there");
    done += got;
  }
  check(job);
}

void ClusterCache::check(Job& job) {
  for (const Miss* miss : job.parts)
    if (store::crc32c(miss->from, static_cast<size_t>(bytes_of(*miss->slot))) != miss->slot->crc)
      return fail(job, "the bytes do not match their checksum");
}

void ClusterCache::fail(const Job& job, const std::string& why) {
  const std::lock_guard<std::mutex> lock(failure_mutex_);
  if (failure_.empty()) failure_ = describe("reading", job.bytes, job.parts.front()->slot->offset, why);
}

void ClusterCache::wait(int64_t head) {
  std::unique_lock<std::mutex> lock(jobs_mutex_);
  while (pending_[static_cast<size_t>(head)] > 0) {
    if (reaping_) {
      job_done_.wait(lock);
      continue;
    }
    reaping_ = true;
    lock.unlock();
    reap();
    lock.lock();
    reaping_ = false;
    job_done_.notify_all();
  }
}

void ClusterCache::finish(std::vector<Wanted>& wanted) {
  if (!failure_.empty()) throw TierFailure(failure_);
  if (!background_) {
    update_.swap(wanted);
    admit();
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(update_mutex_);
    update_.swap(wanted);
    updating_ = true;
  }
  update_posted_.notify_one();
}

void ClusterCache::keep() {
  std::unique_lock<std::mutex> lock(update_mutex_);
  for (;;) {
    update_posted_.wait(lock, [this] { return update_stop_ || updating_; });
    if (update_stop_) return;
    lock.unlock();
    admit();
    lock.lock();
    updating_ = false;
    update_done_.notify_all();
  }
}

// The step's clusters become the newest; those that were read from the file get pages, as long as older ones can go.
void ClusterCache::admit() {
  int64_t fresh = 0;
  for (const Wanted& head : update_)
    for (Slot* slot : head.slots)
      if (slot->page >= 0) {
        touch(*slot);
        ++fresh;
      }
  for (const Wanted& head : update_) {
    for (const Miss& miss : head.misses) {
      Slot& slot = *miss.slot;
      const int64_t need = pages_of(slot.rows);
      while (static_cast<int64_t>(free_.size()) < need && held_ > fresh) {
        evict(*oldest_);
        ++counts_.evicted;
      }
      if (static_cast<int64_t>(free_.size()) < need) continue;
      const char* from = miss.from;
      int32_t* link = &slot.page;
      for (int64_t i = 0; i < need; ++i, from += page_bytes_) {
        *link = free_.back();
        free_.pop_back();
        std::memcpy(pages_.get() + *link * page_bytes_, from, static_cast<size_t>(page_bytes_));
        link = &next_[static_cast<size_t>(*link)];
      }
      *link = -1;
      touch(slot);
      ++held_;
      ++fresh;
    }
  }
}

void ClusterCache::touch(Slot& slot) {
  if (newest_ == &slot) return;
  unlink(slot);
  slot.older = newest_;
  if (newest_ != nullptr) newest_->newer = &slot;
  newest_ = &slot;
  if (oldest_ == nullptr) oldest_ = &slot;
}

void ClusterCache::unlink(Slot& slot) {
  if (slot.newer != nullptr) slot.newer->older = slot.older;
  if (slot.older != nullptr) slot.older->newer = slot.newer;
  if (newest_ == &slot) newest_ = slot.older;
  if (oldest_ == &slot) oldest_ = slot.newer;
  slot.newer = slot.older = nullptr;
}

void ClusterCache::evict(Slot& slot) {
  unlink(slot);
  for (int32_t page = slot.page; page >= 0; page = next_[static_cast<size_t>(page)]) free_.push_back(page);
  slot.page = -1;
  --held_;
}

}  // namespace statepool
