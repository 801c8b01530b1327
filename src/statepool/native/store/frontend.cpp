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

// False if nothing is wanted, or more than the cache could hold together with what was read for the others.
bool Frontend::read_wanted() {
  std::sort(wanted_.begin(), wanted_.end());
  wanted_.erase(std::unique(wanted_.begin(), wanted_.end()), wanted_.end());
  if (wanted_.empty() || wanted_.size() > cache_.room() / 2) {
    wanted_.clear();
    return false;
  }
  std::vector<std::byte> pages(wanted_.size() * options_.page);
  std::vector<Port::Read> reads;
  for (size_t i = 0; i < wanted_.size(); ++i) {
    std::byte* out = pages.data() + i * options_.page;
    if (!reads.empty() && reads.back().at + reads.back().size == wanted_[i] * options_.page)
      reads.back().size += options_.page;
    else
      reads.push_back({wanted_[i] * options_.page, options_.page, out});
  }
  port_.read_all(reads);
  for (size_t i = 0; i < wanted_.size(); ++i) cache_.put_page(wanted_[i], pages.data() + i * options_.page, true);
  wanted_.clear();
  return true;
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
