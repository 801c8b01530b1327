#include "cores.h"

#include <algorithm>

namespace statepool::graph {

// A core for a search that would get no more: it can use no second one, or there is none, and nobody has cores to call back.
// False if there is something to decide, or to wait for.
bool Cores::take_one(bool suffices) {
  uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    const int threads = threads_of(used), searches = searches_of(used);
    if (threads > searches || searches >= count_) return false;
    const int left = count_ - threads - others.load(std::memory_order_relaxed);
    if (!suffices && left > 1 && left - returning() > 1) return false;
  } while (!used_.compare_exchange_weak(used, used + word(1, 1), std::memory_order_relaxed));
  return true;
}

void Cores::leave(int threads) {
  ended_[place()].store(now_ns(), std::memory_order_relaxed);
  used_.fetch_sub(word(threads, 1));
  if (waiting_.load() == 0) return;
  const std::lock_guard<std::mutex> lock(mutex_);  // who waits has looked at the cores before, or will look now
  for (int i = 0; i < threads; ++i) free_.notify_one();
}

// Callers besides this one whose search ended a moment ago.
int Cores::returning() const {
  const int64_t since = now_ns() - moment_ns_;
  const size_t own = place();
  int found = 0;
  for (size_t i = 0; i < kPlaces; ++i) {
    const int64_t ended = ended_[i].load(std::memory_order_relaxed);  // 0: never
    found += i != own && ended != 0 && ended > since;
  }
  return found;
}

size_t Cores::place() {
  static std::atomic<size_t> next{0};
  thread_local const size_t mine = next.fetch_add(1, std::memory_order_relaxed) % kPlaces;
  return mine;
}

// policy.share_out
void Cores::call_back(int most) {
  const int idle = std::max(0, count_ - threads()), share = std::max(1, count_ / (searches() + 1));
  std::vector<int> kept;
  for (const Grant* one : lent_) kept.push_back(one->threads());
  for (int wanted = std::min(most, share) - idle; wanted > 0; --wanted) {
    const auto widest = std::max_element(kept.begin(), kept.end());
    if (*widest <= share) break;
    --*widest;
  }
  for (size_t i = 0; i < lent_.size(); ++i) {
    const int less = lent_[i]->threads() - kept[i];
    if (less == 0) continue;
    used_.fetch_sub(word(less, 0));
    lent_[i]->lease_.lower(kept[i]);
  }
}

Cores::Grant::Grant(Cores& cores, int most, bool waits, bool lends) : cores_(&cores), alone_(cores.take_one(most == 1)) {
  if (alone_) return;
  std::unique_lock<std::mutex> lock(cores.mutex_);
  if (!cores.lent_.empty()) cores.call_back(most);
  if (waits) {
    ++cores.waiting_;
    cores.free_.wait(lock, [&] { return cores.threads() < cores.count_; });
    --cores.waiting_;
  }
  uint64_t used = cores.used_.load();
  int threads = 1;
  do {  // policy.choose_threads
    const int idle = std::max(0, cores.count_ - threads_of(used) - others.load() - cores.returning());
    threads = std::max(1, std::min(most, idle / (cores.waiting_.load() + 1)));
  } while (!cores.used_.compare_exchange_weak(used, used + word(threads, 1)));
  lease_.threads.store(threads, std::memory_order_relaxed);
  if (lends && threads > 1) cores.lent_.push_back(this);
}

void Cores::Grant::end() {
  if (cores_ == nullptr) return;
  if (!alone_) {
    const std::lock_guard<std::mutex> lock(cores_->mutex_);
    const auto mine = std::find(cores_->lent_.begin(), cores_->lent_.end(), this);
    if (mine != cores_->lent_.end()) cores_->lent_.erase(mine);
  }
  cores_->leave(threads());
  cores_ = nullptr;
}

}  // namespace statepool::graph
