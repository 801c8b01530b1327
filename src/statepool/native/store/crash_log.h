// The log alone under power cuts: small enough to be tried in every way, a thousand states in a hundredth of a second.
#pragma once

#include "crash_test.h"

namespace statepool::store {

// Appends, segments that begin, checkpoints that recycle segments, and reopening, as drawn. Then at every point of it
// the power is cut, or the process is killed; the log is opened and used, and the power is cut in the middle of that.
// Each time the log must hold what was acknowledged or shown, and at most the frame that was being written besides.
CrashReport crash_log(uint64_t seed, uint64_t steps);

}  // namespace statepool::store
