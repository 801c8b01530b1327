// In front of Python's interpreter lock: where threads that were woken together wait for one another.
//
// Who finds the interpreter lock taken goes to sleep, and has to be woken a second time. Here he looks for a moment whether
// the one let in before him is through, which is mostly soon: with its next wait for the disk. It is courtesy, not a lock:
// who has looked for long enough goes on as if he had been let in. Between looks he gives his core away, for he may have taken
// it, being awake, from the one he waits for: else both would wait, one for the core and one for the gate.
#pragma once

#include <sched.h>

#include <atomic>
#include <thread>

namespace statepool::store {

class InterpreterGate {
 public:
  void enter() {
    static const int looks = std::thread::hardware_concurrency() > 1 ? kLooks : 0;
    for (int i = 0; i < looks; ++i) {
      const void* nobody = nullptr;
      if (inside_.load(std::memory_order_relaxed) == nobody && inside_.compare_exchange_weak(nobody, me())) return;
      if (i % kPatience == kPatience - 1) sched_yield();
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    inside_.store(me(), std::memory_order_relaxed);
  }

  void leave() {
    const void* self = me();
    if (inside_.load(std::memory_order_relaxed) == self) inside_.compare_exchange_strong(self, nullptr);
  }

 private:
  static constexpr int kLooks = 1000;  // some 25 us: two threads woken, or what one does in Python between two writes
  static constexpr int kPatience = 200;  // looks between two yields, some 5 us: less, and crowds yield more than they work
  static const void* me() {
    thread_local const char self = 0;
    return &self;
  }

  std::atomic<const void*> inside_{nullptr};  // a thread
};

inline InterpreterGate interpreter_gate;

}  // namespace statepool::store
