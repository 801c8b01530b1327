#include "committer.h"

#include "persist_point.h"

namespace statepool::store {
namespace {

constexpr uint64_t kFrameLimit = 4 << 20;
constexpr auto kLinger = std::chrono::milliseconds(5);  // longest time an operation nobody waits for stays in the ring

}  // namespace

Committer::Committer(Log& log, Ring& ring, Control& control) : log_(log), ring_(ring), control_(control) {
  thread_ = std::thread([this] { run(); });
}

Committer::~Committer() {
  stop();
  std::unique_lock<std::mutex> lock(mutex_);
  left_.wait(lock, [&] { return waiting_ == 0; });
}

void Committer::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    if (failure_.empty()) failure_ = "store: it is closed";
    for (auto& turn : turn_) turn.notify_all();
  }
  work_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Committer::wait(uint64_t lsn) {
  if (durable_lsn() >= lsn) return;
  // An operation that is not in the ring yet would be looked for in it for ever.
  if (lsn > __atomic_load_n(&control_.logged_lsn, __ATOMIC_ACQUIRE))
    throw StoreError(Fault::invalid, "lsn: there is no operation " + std::to_string(lsn) + " yet");
  std::unique_lock<std::mutex> lock(mutex_);
  ++waiting_;
  struct Leave {
    Committer& committer;
    ~Leave() {
      if (--committer.waiting_ == 0) committer.left_.notify_all();
    }
  } leave{*this};
  while (durable_lsn() < lsn) {
    if (!failure_.empty()) throw StoreError(Fault::unknown, failure_);
    if (!writing_ && waiting_ == 1) {
      write_frame(lock);
      continue;
    }
    if (!writing_) work_.notify_one();
    const bool next = writing_ && lsn > writing_until_;
    turn_[(frames_ + (next ? 1 : 0)) & 1].wait(lock);
  }
}

void Committer::flush() { wait(__atomic_load_n(&control_.logged_lsn, __ATOMIC_ACQUIRE)); }

void Committer::nudge() {
  const std::lock_guard<std::mutex> lock(mutex_);
  nudged_ = true;
  work_.notify_one();
}

bool Committer::failed() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !failure_.empty();
}

uint64_t Committer::frames() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return frames_;
}

// Takes the lock's holder as the one that writes; the lock is free while the disk works.
void Committer::write_frame(std::unique_lock<std::mutex>& lock) {
  writing_ = true;
  writing_until_ = 0;
  lock.unlock();
  std::string failure;
  uint64_t position = 0, until = durable_lsn();
  try {
    frame_.clear();
    position = ring_.peek(kFrameLimit, [&](const std::byte* record, uint64_t size) {
      frame_.add(record, size, 1);
      ++until;
    });
    lock.lock();
    writing_until_ = until;
    lock.unlock();
    persist_point("frame before");
    log_.append(frame_);
    persist_point("frame after");
  } catch (const std::exception& error) {
    failure = error.what();
  }
  if (!lock.owns_lock()) lock.lock();
  writing_ = false;
  if (failure.empty()) {
    __atomic_store_n(&control_.durable_lsn, until, __ATOMIC_RELEASE);
    persist_point("frame durable");
    ring_.taken(position);
    persist_point("frame taken");
  } else {
    failure_ = failure;
  }
  // Those of the next frame stay asleep only if there will be one.
  turn_[frames_ & 1].notify_all();
  if (!failure.empty() || ring_.empty()) turn_[(frames_ + 1) & 1].notify_all();
  else if (waiting_ > 0) work_.notify_one();
  ++frames_;
}

void Committer::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    if (ring_.empty() || !failure_.empty()) {
      nudged_ = false;
      idle_.store(true);
      // After a failure there is nothing to do but to end: waiters are told by whoever failed.
      const auto wanted = [&] { return waiting_ > 0 && !writing_ && !ring_.empty() && failure_.empty(); };
      work_.wait(lock, [&] { return stopping_ || nudged_ || wanted(); });
      idle_.store(false);
    } else {
      work_.wait_for(lock, kLinger, [&] { return stopping_ || (waiting_ > 0 && !writing_); });
    }
    if (!stopping_ && !writing_ && failure_.empty() && !ring_.empty()) write_frame(lock);
  }
}

}  // namespace statepool::store
