#include "crew.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>

#include "cores.h"

namespace statepool::graph {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kPausesUntilYield = 128;

std::atomic<Crew*> current{nullptr};
std::mutex creating;
thread_local std::atomic<uint32_t>* running_slot = nullptr;  // of a helper at work

// A helper can be done without, a caller not. Under a real-time policy nobody stops an equal, so helpers are one step lower:
// a caller that wakes has the core of one at once.
void step_back() {
  int policy = 0;
  sched_param parameters{};
  if (pthread_getschedparam(pthread_self(), &policy, &parameters) != 0) return;
  if ((policy != SCHED_FIFO && policy != SCHED_RR) || parameters.sched_priority <= 1) return;
  --parameters.sched_priority;
  pthread_setschedparam(pthread_self(), policy, &parameters);
}

// A fork copies no threads: the child starts over. The crew of the parent stays where it is, since nothing may touch it.
void forget() {
  current.store(nullptr, std::memory_order_release);
  Cores::others.store(0);
}

}  // namespace

bool Patience::linger() {
  if (turns_ + 1 < kPauses || running_slot == nullptr) {
    wait();
    return true;
  }
  const uint32_t running = running_slot->load(std::memory_order_relaxed);
  uint32_t away = (running & ~Crew::kMask) | Crew::kAway;
  running_slot->store(away, std::memory_order_release);
  std::this_thread::yield();
  return running_slot->compare_exchange_strong(away, running, std::memory_order_acq_rel);
}

Crew& Crew::instance() {
  if (Crew* crew = current.load(std::memory_order_acquire)) return *crew;
  const std::lock_guard<std::mutex> lock(creating);
  if (Crew* crew = current.load(std::memory_order_acquire)) return *crew;
  static const int registered = pthread_atfork([] { creating.lock(); }, [] { creating.unlock(); },
                                               [] {
                                                 creating.unlock();
                                                 forget();
                                               });
  (void)registered;
  Crew* crew = new Crew;  // lives as long as its threads: to the end of the process
  current.store(crew, std::memory_order_release);
  return *crew;
}

void Crew::grow(int wanted) {
  if (wanted > kMostThreads) wanted = kMostThreads;
  if (helpers() >= wanted) return;
  const std::lock_guard<std::mutex> lock(growing_);
  for (int i = helpers(); i < wanted; ++i) {
    Slot& slot = slots_[static_cast<size_t>(i)];
    std::thread([this, &slot] { loop(slot); }).detach();
    count_.store(i + 1, std::memory_order_release);
  }
}

void Crew::note_caller() {
  const void* caller = this_thread();
  if (caller_.exchange(caller, std::memory_order_relaxed) != caller) in_a_row_.store(0, std::memory_order_relaxed);
  else if (!stays()) in_a_row_.fetch_add(1, std::memory_order_relaxed);
}

void Crew::loop(Slot& slot) {
  step_back();
  auto deadline = std::chrono::steady_clock::now() + kSpin;
  for (int turns = 0;;) {
    uint32_t word = slot.state.load(std::memory_order_acquire);
    const uint32_t turn = word & ~kMask, state = word & kMask;
    if (state == kAssigned) {
      if (slot.state.compare_exchange_strong(word, turn | kRunning, std::memory_order_acq_rel)) {
        running_slot = &slot.state;
        slot.work(slot.shared, slot.worker);
        running_slot = nullptr;
        word = turn | kRunning;
        slot.state.compare_exchange_strong(word, turn | kSpinning, std::memory_order_acq_rel);  // fails if it was called off
        tell_done();
      }
      deadline = std::chrono::steady_clock::now() + kSpin;
      turns = 0;
      continue;
    }
    pause();
    if (++turns % kPausesUntilYield == 0) std::this_thread::yield();  // somebody may be waiting for this core
    if (state != kSpinning || turns % 16 != 0) continue;
    if (stays() && std::chrono::steady_clock::now() < deadline) continue;
    if (slot.state.compare_exchange_strong(word, turn | kParked, std::memory_order_acq_rel)) {
      slot.state.wait(turn | kParked, std::memory_order_acquire);
      // Whoever woke this thread may be done by now; the next query should find it awake.
      deadline = std::chrono::steady_clock::now() + kSpin;
    }
  }
}

uint32_t Crew::claim(Slot& slot, State from) {
  uint32_t word = slot.state.load(std::memory_order_relaxed);
  if ((word & kMask) != from) return 0;
  uint32_t turn = (word & ~kMask) + kTurn;
  if (turn == 0) turn = kTurn;
  return slot.state.compare_exchange_strong(word, turn | kClaimed, std::memory_order_acq_rel) ? turn : 0;
}

int Crew::idle() const {
  int found = 0;
  for (int i = 0; i < helpers(); ++i) {
    const uint32_t state = slots_[static_cast<size_t>(i)].state.load(std::memory_order_relaxed) & kMask;
    found += state == kSpinning || state == kParked;
  }
  return found;
}

Crew::Team::Team(Crew& crew, int wanted, Work work, void* shared) : crew_(crew) {
  if (wanted > kMostThreads) wanted = kMostThreads;
  crew.grow(wanted);
  crew.note_caller();
  for (const State from : {kSpinning, kParked}) {
    for (int i = 0; i < crew.helpers() && size_ < wanted; ++i) {
      Slot& slot = crew.slots_[static_cast<size_t>(i)];
      const uint32_t turn = claim(slot, from);
      if (turn == 0) continue;
      slot.work = work;
      slot.shared = shared;
      slot.worker = size_ + 1;
      slot.state.store(turn | kAssigned, std::memory_order_release);
      if (from == kParked) slot.state.notify_one();
      members_[size_++] = {i, turn};
    }
  }
}

void Crew::Team::dismiss() {
  for (int m = 0; m < size_; ++m) {
    const uint32_t turn = members_[m].turn;
    std::atomic<uint32_t>& state = crew_.slots_[static_cast<size_t>(members_[m].slot)].state;
    uint32_t word = turn | kAssigned;
    if (state.compare_exchange_strong(word, turn | kSpinning, std::memory_order_acq_rel)) continue;
    for (Patience patience; word == (turn | kRunning) || word == (turn | kAway); patience.wait()) {
      word = turn | kAway;
      if (state.compare_exchange_strong(word, turn | kSpinning, std::memory_order_acq_rel)) break;
    }
  }
  size_ = 0;
}

}  // namespace statepool::graph
