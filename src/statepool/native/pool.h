// The thread pool all kernels share: parallel loops whose chunks are taken from an atomic counter.
// Which thread runs a chunk must never change a result: a chunk writes only its own outputs.
#pragma once

#include <cstdint>
#include <type_traits>

namespace statepool {

// Threads that take part in a loop, the caller included. Raises std::invalid_argument outside 1..256.
void set_threads(int count);
int threads();

namespace detail {
using Body = void (*)(void* context, int64_t begin, int64_t end);
void parallel(int64_t count, int64_t grain, Body body, void* context);
}  // namespace detail

// Runs body(begin, end) over [0, count) in chunks of `grain` items (>= 1; the last may be shorter) and returns when all
// are done. One thread, one chunk, or a call from inside a body gets the whole range in one call on the caller.
// Scratch memory belongs in thread_local storage. A body must not throw.
template <class F>
void parallel_for(int64_t count, int64_t grain, F&& body) {
  using Plain = std::remove_reference_t<F>;
  detail::parallel(
      count, grain,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<Plain*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace statepool
