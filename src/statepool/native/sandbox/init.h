// PID 1 of a slot. It is a fork of the template's memory that runs no Python: it makes and drops file systems, forks kernels from that
// memory, starts commands, reaps, and cleans up for the next tenant.
//
// It speaks to the manager only. A tenant shares its PID namespace and can do nothing to it: it is not dumpable, and PID 1 takes no
// signal from inside that it has no handler for.
#pragma once

#include "confine.h"
#include "roots.h"

namespace statepool::sandbox {

constexpr int kControl = 3;  // descriptor of the socket to the manager: in PID 1, and in a kernel of its own

// Serve the manager on descriptor 3 until it goes away, then end. Returns in kernels only: confined, with the manager's other socket at
// descriptor 3, before Python knows of the fork. Requests are fields with a zero byte between them: a number that the answer carries,
// what to do, and the rest as `Init::answer` reads it.
void serve_slot(const Plan& plan, const Room& room, const std::vector<sock_filter>& program);

}  // namespace statepool::sandbox
