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

// Put what this process has written to into a sealed file in memory and map that privately in its place, in pages of 2 MiB where there
// are so many beside each other. A fork then copies no entries of page tables, and a page that a fork has written to can go back. Where
// this Linux does not do that, memory stays as it is.
void seal();

// Free the pages that hold what the sealed file does: counters went up and down again. Nothing, if there are other threads.
void give_back();

// Take all free memory between what is in use, so that what is allocated in a fork lies close together, not in a page here and there.
void fill_holes();

}  // namespace statepool::sandbox
