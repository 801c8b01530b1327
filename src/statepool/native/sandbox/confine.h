// What a tenant's process loses before its first instruction: root directory, groups, uid, capabilities, new privileges,
// most system calls. Every step is a raw system call, so that it may run between vfork and exec, where the parent's memory is shared.
#pragma once

#include <linux/filter.h>
#include <sys/resource.h>

#include <cstdint>
#include <string>
#include <vector>

namespace statepool::sandbox {

struct Limit {
  int resource;
  uint64_t value;
};

struct Confinement {
  uint32_t uid, gid;
  uint64_t capabilities;             // bits that stay permitted and effective until an exec
  bool groups;                       // whether supplementary groups can be cleared: not inside an unprivileged user namespace
  std::vector<sock_filter> program;  // seccomp; empty only in tests
  std::vector<Limit> limits;
};

// Name of the step that failed, with errno set; nullptr when all were done.
const char* confine(const Confinement& want, int root_fd);

// Put back the default handling of signals and open the mask: a child must not inherit what an interpreter blocked.
void reset_signals();

}  // namespace statepool::sandbox
