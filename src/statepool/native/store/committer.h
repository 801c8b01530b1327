// Group commit: takes whole transactions from the staging ring and makes one durable frame of all that wait.
//
// A caller alone writes its frame itself, for a hand-over to another thread costs more than a small write. Where several
// wait, a thread of the committer's own writes frame after frame. It begins one when as many wait as are still to be woken
// from the one before: those just let go come back with their next operation, and a frame begun at the first of them would
// hold little and keep the disk from the rest. Half of the callers then work while the other half's frame is written.
//
// Those whose operations became durable are woken in a few chains, each by the one before it as soon as that is running
// again: one who woke them all would be busy for long, and one chain would be as slow as a core is to wake another.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>

#include "log.h"
#include "ring.h"

namespace statepool::store {

class Committer {
 public:
  Committer(Log& log, Ring& ring, Control& control);
  ~Committer();

  // Returns when everything up to lsn is durable; whether it slept, and others wake beside it. StoreError: unknown after a
  // failed write, now or earlier.
  bool wait(uint64_t lsn);
  void flush();           // everything logged so far
  void stop();            // the thread ends; waiting goes on for what is durable only
  void nudge();           // there may be a lot in the ring: write it without anybody waiting
  bool idle() const { return idle_.load(std::memory_order_relaxed); }  // asleep until somebody nudges
  uint64_t durable_lsn() const { return __atomic_load_n(&control_.durable_lsn, __ATOMIC_ACQUIRE); }
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  uint64_t frames() const;

 private:
  class Waiter;
  bool worth_a_frame() const { return !writing_ && !waiting_.empty() && waiting_.size() >= released_.size(); }
  void write_frame(std::unique_lock<std::mutex>& lock);
  void release_waiters();
  void wake_next(std::unique_lock<std::mutex>& lock);
  void start_chains(std::unique_lock<std::mutex>& lock);
  void run();

  Log& log_;
  Ring& ring_;
  Control& control_;
  FrameBuilder frame_;
  mutable std::mutex mutex_;
  std::deque<Waiter*> waiting_, released_;  // those whose operations are not durable yet, and who need not wait any more
  int chains_ = 0;                          // as many of the released were woken and wake the next
  std::condition_variable work_, left_;
  uint64_t frames_ = 0, inside_ = 0;
  bool writing_ = false, stopping_ = false, nudged_ = false;
  std::atomic<bool> idle_{false}, failed_{false};
  std::string failure_;
  std::thread thread_;
};

}  // namespace statepool::store
