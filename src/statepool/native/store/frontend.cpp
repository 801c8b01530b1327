#include "frontend.h"

namespace statepool::store {

void Frontend::record(Bytes operation) {
  ++lsn_;
  if (options_.operation_log) port_.append(operation);
}

void Frontend::end() {
  if (options_.operation_log) {
    send(false);  // what it does is durable by its record already
  } else {
    for (const Port::Write& w : log_) port_.write(w.at, bytes_.data() + w.offset, w.size);
    log_.clear(), bytes_.clear(), unsent_.clear();
  }
  forget();
}

void Frontend::forget() {
  if (!cache_.keeps()) cache_.clear();
}

void Frontend::send(bool wait) const {
  if (!log_.empty()) port_.transact(log_, bytes_, wait);
  log_.clear(), bytes_.clear(), unsent_.clear();
}

// A page that was given up, or was never here, while its new bytes still wait in the memory log.
void Frontend::send_before_reading(Addr a, size_t n) const {
  for (Addr p = a / options_.page; p <= (a + (n == 0 ? 0 : n - 1)) / options_.page; ++p)
    if (unsent_.count(p) != 0 && !cache_.has(p * options_.page)) return send(false);
}

Addr Frontend::allocate(size_t n) {
  const size_t size = object_size(n);
  if (!options_.slabs || size > kSmallLimit) return port_.allocate_block(n);
  Slab& slab = slabs_[size];
  if (!slab.free.empty()) {
    const Addr a = slab.free.back();
    slab.free.pop_back();
    return a;
  }
  if (slab.next + size > slab.end) {
    slab.next = port_.allocate_block(kBlock);
    slab.end = slab.next + kBlock;
  }
  const Addr a = slab.next;
  slab.next += size;
  // Pages of a block that was just taken hold nothing, so they need not be read.
  for (Addr p = round_up(a, options_.page); p < slab.next; p += options_.page) cache_.put_new(p);
  return a;
}

void Frontend::release(Addr a, size_t n) {
  const size_t size = object_size(n);
  if (!options_.slabs || size > kSmallLimit) port_.release_block(a, n);
  else slabs_[size].free.push_back(a);
}

}  // namespace statepool::store
