// Group commit: takes whole transactions from the staging ring and makes one durable frame of all that wait.
//
// A caller alone writes its frame itself, for a hand-over to another thread costs more than a small write. Where
// several wait, a thread of the committer's own writes frame after frame while they are woken.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
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

  // Returns when everything up to lsn is durable. StoreError: unknown after a failed write, now or earlier.
  void wait(uint64_t lsn);
  void flush();           // everything logged so far
  void stop();            // the thread ends; waiting goes on for what is durable only
  void nudge();           // there may be a lot in the ring: write it without anybody waiting
  bool idle() const { return idle_.load(std::memory_order_relaxed); }  // asleep until somebody nudges
  uint64_t durable_lsn() const { return __atomic_load_n(&control_.durable_lsn, __ATOMIC_ACQUIRE); }
  bool failed() const;
  uint64_t frames() const;

 private:
  void write_frame(std::unique_lock<std::mutex>& lock);
  void run();

  Log& log_;
  Ring& ring_;
  Control& control_;
  FrameBuilder frame_;
  mutable std::mutex mutex_;
  std::condition_variable turn_[2];  // waiters of the frame being written and of the next one, by its number's parity
  std::condition_variable work_, left_;
  uint64_t frames_ = 0, waiting_ = 0;
  uint64_t writing_until_ = 0;  // last lsn of the frame being written
  bool writing_ = false, stopping_ = false, nudged_ = false;
  std::atomic<bool> idle_{false};
  std::string failure_;
  std::thread thread_;
};

}  // namespace statepool::store
