// A process that keeps its memory as it is. It waits in C: no Python runs in it, no reference count is written, so no page is copied,
// and each of its children begins with the pages of the process that it was forked from itself.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace statepool::sandbox {

// What a child was made for: the message that asked for it (JSON), and the descriptors beside it.
struct Order {
  std::string body;
  std::vector<int> fds;
};

// What the two functions below answer: an order in a child of the process that waits, and in the process that called, if it goes on, the
// id of the one that waits; -1 is an error. A process that waits ends with its socket. Messages have four bytes of length before them.
// {"op":"kill"... ends all other processes of the PID namespace but its first; {"op":"join"... enters the namespaces that came along;
// any other is an order.
struct Forked {
  pid_t pid;
  std::optional<Order> order;
};

// A holder of this process's memory, with `line` as its descriptor 3 and without the descriptor `other`.
Forked hold(int line, int other);

// This process waits itself, and forks a stem for each message: for a slot whose first process sends its namespaces over the first of
// the descriptors beside it. The others are cgroup.procs of the cgroups that the stem joins. A stem tells when a child of it ends.
Forked sow(int line);

}  // namespace statepool::sandbox
