#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include <pthread.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace statepool {
namespace {

// Long enough to bridge the gap between two kernels of a layer, short enough not to hurt a neighbour process.
constexpr int kSpins = 4000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

thread_local bool inside_loop = false;

class Pool {
 public:
  explicit Pool(int count) : count_(count) {
    workers_.reserve(static_cast<size_t>(count - 1));
    for (int i = 1; i < count; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(sleep_);
      stop_.store(true);
      epoch_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int count() const { return count_; }

  // False when another caller's loop is running: the caller then works alone instead of waiting.
  bool run(int64_t count, int64_t grain, detail::Body body, void* context) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    items_ = count;
    grain_ = grain;
    body_ = body;
    context_ = context;
    next_.store(0, std::memory_order_relaxed);
    gate_.fetch_and(~kClosed, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
    take_chunks();
    // Closing the gate keeps a worker that wakes late out of this loop: on a busy machine the caller must not wait a
    // scheduler slice for a thread that has nothing left to do.
    gate_.fetch_or(kClosed, std::memory_order_acq_rel);
    for (int spin = 0; gate_.load(std::memory_order_acquire) != kClosed; ++spin) {
      if (spin < kSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
    return true;
  }

 private:
  static constexpr uint32_t kClosed = 1u << 31;

  void take_chunks() {
    inside_loop = true;
    for (;;) {
      const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= items_) break;
      const int64_t end = begin + grain_ < items_ ? begin + grain_ : items_;
      body_(context_, begin, end);
    }
    inside_loop = false;
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      uint64_t now = epoch_.load(std::memory_order_acquire);
      for (int spin = 0; now == seen && spin < kSpins; ++spin) {
        relax();
        now = epoch_.load(std::memory_order_acquire);
      }
      if (now == seen) {
        std::unique_lock<std::mutex> lock(sleep_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_seq_cst) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
        now = epoch_.load(std::memory_order_acquire);
      }
      seen = now;
      if (stop_.load(std::memory_order_acquire)) return;
      if (!(gate_.fetch_add(1, std::memory_order_acq_rel) & kClosed)) take_chunks();
      gate_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int count_;
  std::vector<std::thread> workers_;
  std::mutex owner_;
  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<bool> stop_{false};
  int64_t items_ = 0, grain_ = 1;
  detail::Body body_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> epoch_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> gate_{kClosed};  // workers inside the loop, and the closed bit
  alignas(64) std::atomic<int> sleepers_{0};
};

// Both live for ever: a worker may outlive the static destructors.
std::mutex& pool_lock = *new std::mutex;
std::shared_ptr<Pool>& pool = *new std::shared_ptr<Pool>;
int wanted = 0;

// A forked child has no workers: forget the parent's pool (leaked on purpose) and start anew on first use.
void forget_after_fork() {
  new (&pool) std::shared_ptr<Pool>;
  new (&pool_lock) std::mutex;
  inside_loop = false;
}

int default_threads() {
  const unsigned cores = std::thread::hardware_concurrency();
  return cores == 0 ? 1 : static_cast<int>(cores < 256 ? cores : 256);
}

std::shared_ptr<Pool> shared_pool() {
  std::lock_guard<std::mutex> lock(pool_lock);
  if (!pool) {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_after_fork);
    (void)registered;
    pool = std::make_shared<Pool>(wanted ? wanted : default_threads());
  }
  return pool;
}

}  // namespace

void set_threads(int count) {
  if (count < 1 || count > 256) throw std::invalid_argument("threads: must be between 1 and 256");
  std::shared_ptr<Pool> old;
  std::lock_guard<std::mutex> lock(pool_lock);
  wanted = count;
  if (pool && pool->count() != count) old.swap(pool);
}

int threads() {
  std::lock_guard<std::mutex> lock(pool_lock);
  return wanted ? wanted : default_threads();
}

namespace detail {

void parallel(int64_t count, int64_t grain, Body body, void* context) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  if (count > grain && !inside_loop) {
    const std::shared_ptr<Pool> workers = shared_pool();
    if (workers->count() > 1 && workers->run(count, grain, body, context)) return;
  }
  body(context, 0, count);
}

}  // namespace detail
}  // namespace statepool
