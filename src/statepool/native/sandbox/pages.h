// Pages of a fork: those it writes to, and how to have them copied at once instead of one fault after the other.
#pragma once

#include <stdint.h>

#include <utility>
#include <vector>

namespace statepool::sandbox {

// Beginning and length of a stretch of memory, in bytes.
using Stretch = std::pair<uintptr_t, uintptr_t>;

// What of this process's private memory no other process shares: in a fork, what it has written to since, as long as its parent wrote
// nothing. Without /proc it is empty.
std::vector<Stretch> written();

// What forks of this process will write to; theirs inherit it.
void expect_writes(std::vector<Stretch> stretches);

// Copy what is expected to be written to, now: a third of the price of a fault each (REAP's recorded working set, for forks). Where a
// stretch is not there, or this Linux is older than 5.14, nothing happens, and faults come as they always do.
void copy_expected();

// Put the private memory of this process into pages of 2 MiB where there are so many beside each other. A fork copies one entry for
// such a page instead of 512, and who writes to a part of it still gets a copy of 4 KiB only. Answers how many pages there are.
int collapse();

// Take all free memory between what is in use, so that what is allocated in a fork lies close together, not in a page here and there.
void fill_holes();

}  // namespace statepool::sandbox
