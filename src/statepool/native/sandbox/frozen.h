// A process that keeps its memory as it is. It waits in C: no Python runs in it, no reference count is written, so no page is copied,
// and each of its children begins with the pages of the process that it was forked from itself.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace statepool::sandbox {

// What a child was made for: the message that asked for it (JSON), and the descriptors beside it.
struct Order {
  std::string body;
  std::vector<int> fds;
};

// Wait for orders on the socket `line`, and fork for each; answers only in a child. The process itself ends with the socket.
// Messages have four bytes of length before them. {"op":"kill"... ends all other processes of the PID namespace but its first;
// {"op":"join"... enters the namespaces that came along; any other is an order. With `report`, ends of children are told.
Order wait_frozen(int line, bool report);

// Fork such a process for a slot whose first process sends its namespaces over `line`: it joins the cgroups of the files `procs`, then
// the namespaces, and forks what waits. Nothing in the calling process; an order in a child of the one that waits.
std::optional<Order> plant(int line, const std::vector<std::string>& procs);

}  // namespace statepool::sandbox
