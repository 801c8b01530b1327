// Processes that keep their memory as it is. They wait in C: no Python runs in them, no reference count is written, so no page is
// copied, and each of their children begins with the pages of the process that it was forked from itself.
//
// These are forks of one thread that holds the interpreter, so a child goes on in it as it is: no lock is another thread's, and Python's
// work after a fork (200 pages) is left out. What a kernel needs of it is in inside/forked.py.
#pragma once

#include <linux/filter.h>
#include <sys/types.h>

#include <optional>
#include <vector>

#include "wire.h"

namespace statepool::sandbox {

// In a child of the process that waits: the message that asked for it, and the descriptors beside it. In the process that called: the id
// of the one that waits; -1 is an error.
struct Forked {
  pid_t pid;
  std::optional<Order> order;
};

// A holder of this process's memory, with `line` as its descriptor 3. It ends with its socket.
Forked hold(int line);

// This process waits itself, and forks a slot for each message on `line`, whose fields are: 1 in a user namespace of its own, bytes and
// inodes of a layer, a folder to build in, the lowest layer, the number of further layers, these, and folders of the host. Beside it lie
// the slot's control socket and cgroup.procs of the cgroups to join. Returns in kernels: confined, ready to run Python. What goes wrong is
// told on the control socket; first of all comes {"op":"born","pid":…} with the id of the slot's PID 1.
void sow(int line, const std::vector<sock_filter>& program);

}  // namespace statepool::sandbox
