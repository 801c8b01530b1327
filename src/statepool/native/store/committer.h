// Group commit: takes whole transactions from the staging ring and makes one durable frame of all that wait.
//
// A caller alone writes its frame itself, for a hand-over to another thread costs more than a small write. Where several
// wait, a thread of the committer's own writes frame after frame.
//
// Those whose operations became durable are woken one after the other, each by the one before it when that is running
// again. They mostly go on to something that only one of them can have, Python's interpreter lock: woken together, they
// would wake and sleep again for nothing.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "log.h"
#include "ring.h"

namespace statepool::store {

class Committer {
 public:
  // What a waiter comes back with. The next one is woken when it is destroyed: at once, or, by somebody who needs
  // another lock first, with that lock in hand.
  class Turn {
   public:
    Turn() = default;
    Turn(Turn&& other) noexcept { *this = std::move(other); }
    Turn& operator=(Turn&& other) noexcept {
      std::swap(committer_, other.committer_);
      std::swap(woken_, other.woken_);
      return *this;
    }
    ~Turn() {
      if (committer_ != nullptr) committer_->leave(woken_);
    }

   private:
    friend class Committer;
    Committer* committer_ = nullptr;  // that outlives it
    bool woken_ = false;
  };

  Committer(Log& log, Ring& ring, Control& control);
  ~Committer();

  // Returns when everything up to lsn is durable. StoreError: unknown after a failed write, now or earlier.
  Turn wait(uint64_t lsn) { return wait(lsn, true); }
  void wait_apart(uint64_t lsn) { wait(lsn, false); }  // the same, for who must not depend on others that were woken
  void flush();           // everything logged so far, apart
  void stop();            // the thread ends; waiting goes on for what is durable only
  void nudge();           // there may be a lot in the ring: write it without anybody waiting
  bool idle() const { return idle_.load(std::memory_order_relaxed); }  // asleep until somebody nudges
  uint64_t durable_lsn() const { return __atomic_load_n(&control_.durable_lsn, __ATOMIC_ACQUIRE); }
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  uint64_t frames() const;

 private:
  class Waiter;
  Turn wait(uint64_t lsn, bool in_turn);
  void leave(bool woken);
  void write_frame(std::unique_lock<std::mutex>& lock);
  void release_waiters();
  Waiter* next();
  void run();

  Log& log_;
  Ring& ring_;
  Control& control_;
  FrameBuilder frame_;
  mutable std::mutex mutex_;
  std::deque<Waiter*> waiting_, released_;  // those whose operations are not durable yet, and who need not wait any more
  bool turn_taken_ = false;                 // one of the released is awake and wakes the next
  std::condition_variable work_, left_;
  uint64_t frames_ = 0, inside_ = 0;
  bool writing_ = false, stopping_ = false, nudged_ = false;
  std::atomic<bool> idle_{false}, failed_{false};
  std::string failure_;
  std::thread thread_;
};

}  // namespace statepool::store
