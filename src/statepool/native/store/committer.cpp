#include "committer.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "persist_point.h"

namespace statepool::store {
namespace {

constexpr uint64_t kFrameLimit = 4 << 20;
constexpr int kChains = 2;  // while a core wakes up for one, another goes on
constexpr auto kLinger = std::chrono::milliseconds(5);  // longest time an operation nobody waits for stays in the ring

}  // namespace

// A sleeping thread, on a word of its own: a condition variable would have it take the mutex again when it wakes.
class Committer::Waiter {
 public:
  explicit Waiter(uint64_t until) : lsn(until) {}
  void sleep() {
    while (word_.load(std::memory_order_acquire) == 0) futex(FUTEX_WAIT_PRIVATE, 0);
  }
  // The waiter may be gone as soon as it sees the word: the address is then only a number, that wakes nobody.
  void wake() {
    word_.store(1, std::memory_order_release);
    futex(FUTEX_WAKE_PRIVATE, 1);
  }
  const uint64_t lsn;

 private:
  void futex(int what, uint32_t value) { syscall(SYS_futex, &word_, what, value, nullptr, nullptr, 0); }
  std::atomic<uint32_t> word_{0};
  static_assert(sizeof(std::atomic<uint32_t>) == 4);
};

Committer::Committer(Log& log, Ring& ring, Control& control) : log_(log), ring_(ring), control_(control) {
  thread_ = std::thread([this] { run(); });
}

Committer::~Committer() {
  stop();
  std::unique_lock<std::mutex> lock(mutex_);
  left_.wait(lock, [&] { return inside_ == 0; });
}

void Committer::stop() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    stopping_ = true;
    if (failure_.empty()) failure_ = "store: it is closed", failed_ = true;
    if (!writing_) release_waiters();
    start_chains(lock);
  }
  work_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool Committer::wait(uint64_t lsn) {
  if (durable_lsn() >= lsn) return false;
  // An operation that is not in the ring yet would be looked for in it for ever.
  if (lsn > __atomic_load_n(&control_.logged_lsn, __ATOMIC_ACQUIRE))
    throw StoreError(Fault::invalid, "lsn: there is no operation " + std::to_string(lsn) + " yet");
  std::unique_lock<std::mutex> lock(mutex_);
  ++inside_;
  bool slept = false;
  while (durable_lsn() < lsn && failure_.empty()) {
    if (!writing_ && waiting_.empty() && released_.empty()) {
      write_frame(lock);
      continue;
    }
    Waiter self(lsn);
    waiting_.push_back(&self);
    if (worth_a_frame()) work_.notify_one();
    lock.unlock();
    self.sleep();
    slept = true;
    lock.lock();
    wake_next(lock);
  }
  if (--inside_ == 0) left_.notify_all();
  if (durable_lsn() < lsn) throw StoreError(Fault::unknown, failure_);
  return slept;
}

void Committer::flush() { wait(__atomic_load_n(&control_.logged_lsn, __ATOMIC_ACQUIRE)); }

void Committer::nudge() {
  const std::lock_guard<std::mutex> lock(mutex_);
  nudged_ = true;
  work_.notify_one();
}

uint64_t Committer::frames() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return frames_;
}

// Takes the lock's holder as the one that writes; the lock is free while the disk works.
void Committer::write_frame(std::unique_lock<std::mutex>& lock) {
  writing_ = true;
  lock.unlock();
  std::string failure;
  uint64_t position = 0, until = durable_lsn();
  try {
    frame_.clear();
    position = ring_.peek(kFrameLimit, [&](const std::byte* record, uint64_t size) {
      frame_.add(record, size, 1);
      ++until;
    });
    persist_point("frame before");
    log_.append(frame_);
    persist_point("frame after");
  } catch (const std::exception& error) {
    failure = error.what();
  }
  if (failure.empty()) {
    control_.tails[frames_ & 1] = log_.tail();  // frames_ changes under writing_ alone
    persist_point("frame noted");
    __atomic_store_n(&control_.durable_lsn, until, __ATOMIC_RELEASE);
    persist_point("frame durable");
    ring_.taken(position);
    persist_point("frame taken");
  }
  lock.lock();
  writing_ = false;
  ++frames_;
  if (!failure.empty()) failure_ = failure, failed_ = true;
  release_waiters();
  if (worth_a_frame()) work_.notify_one();
  start_chains(lock);
}

// Those who need not wait any more line up to be woken.
void Committer::release_waiters() {
  const uint64_t durable = durable_lsn();
  const auto done = std::stable_partition(waiting_.begin(), waiting_.end(), [&](const Waiter* w) {
    return failure_.empty() && w->lsn > durable;
  });
  released_.insert(released_.end(), done, waiting_.end());
  waiting_.erase(done, waiting_.end());
}

// The chain goes on with the next of the released, or ends. The lock is free while that one is woken.
void Committer::wake_next(std::unique_lock<std::mutex>& lock) {
  if (released_.empty()) {
    --chains_;
    return;
  }
  Waiter* const first = released_.front();
  released_.pop_front();
  if (worth_a_frame()) work_.notify_one();
  lock.unlock();
  first->wake();
  lock.lock();
}

void Committer::start_chains(std::unique_lock<std::mutex>& lock) {
  while (chains_ < kChains && !released_.empty()) {
    ++chains_;
    wake_next(lock);
  }
}

void Committer::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    if (ring_.empty() || !failure_.empty()) {
      nudged_ = false;
      idle_.store(true);
      work_.wait(lock, [&] { return stopping_ || nudged_ || (worth_a_frame() && !ring_.empty()); });
      idle_.store(false);
    } else {
      work_.wait_for(lock, kLinger, [&] { return stopping_ || worth_a_frame(); });
    }
    if (!stopping_ && !writing_ && failure_.empty() && !ring_.empty()) write_frame(lock);
  }
}

}  // namespace statepool::store
