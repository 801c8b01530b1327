// Places where a test can have the process killed: between two steps that a crash must not be able to tell apart.
#pragma once

namespace statepool::store {

extern bool persist_points_armed;
void arm_persist_points();                   // STATEPOOL_STORE_KILL_AT=name[:n], read when a store is opened
void pass_persist_point(const char* name);   // SIGKILL at the n-th pass of that name (default: the first)

inline void persist_point(const char* name) {
  if (__builtin_expect(persist_points_armed, 0)) pass_persist_point(name);
}

}  // namespace statepool::store
