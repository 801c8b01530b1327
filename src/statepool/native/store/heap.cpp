#include "heap.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "persist_point.h"

namespace statepool::store {
namespace {

constexpr uint64_t kControlMagic = 0x32304c4f52544e43;  // "CNTROL02"
constexpr uint64_t kHeapMagic = 0x3130304150414548;     // "HEAPA001"

// Size class of n bytes (1 .. kSmallLimit) and the size of a class.
int class_of(size_t n) {
  if (n <= 128) return static_cast<int>((std::max<size_t>(n, 1) + 15) / 16) - 1;
  const int doubling = 63 - __builtin_clzll(n - 1);  // 128 < n <= 256 gives 7
  const size_t quarter = size_t{1} << (doubling - 2);
  return 8 + (doubling - 7) * 4 + static_cast<int>((n - 1 - (size_t{1} << doubling)) / quarter);
}

size_t class_size(int c) {
  if (c < 8) return 16 * (static_cast<size_t>(c) + 1);
  const size_t base = size_t{128} << ((c - 8) / 4);
  return base + base / 4 * (static_cast<size_t>(c - 8) % 4 + 1);
}

}  // namespace

size_t object_size(size_t n) { return n > kSmallLimit ? round_up(n, kBlock) : class_size(class_of(n)); }

uint64_t Heap::region_size(uint64_t capacity, uint64_t journal, uint64_t ring) {
  return kSector + 8 * kSequences + journal + ring + capacity;
}

void Heap::prepare(std::byte* region, uint64_t capacity, uint64_t journal, uint64_t ring) {
  auto* control = reinterpret_cast<Control*>(region);
  *control = Control{};
  control->magic = kControlMagic;
  control->capacity = capacity;
  control->journal_capacity = journal;
  control->ring_capacity = ring;
}

Heap::Heap(std::byte* region, bool format) : control_(reinterpret_cast<Control*>(region)) {
  if (control_->magic != kControlMagic) throw StoreError(Fault::format, "heap: not a statepool heap");
  sequences_ = reinterpret_cast<uint64_t*>(region + kSector);
  journal_ = region + kSector + 8 * kSequences;
  ring_ = journal_ + control_->journal_capacity;
  base_ = ring_ + control_->ring_capacity;
  capacity_ = control_->capacity;
  if (!format) {
    if (header().magic != kHeapMagic) throw StoreError(Fault::format, "heap: not a statepool heap");
    return;
  }
  HeapHeader& h = header();
  h = HeapHeader{};
  h.magic = kHeapMagic;
  // The last block stays empty: readers ask for a guess of an object's size (kItemGuess) before they know it.
  h.blocks = capacity_ / kBlock - 1;
  h.bitmap = kSector;
  const uint64_t words = round_up(h.blocks, 64) / 64;
  const uint64_t used = round_up(kSector + words * 8, kBlock) / kBlock;
  std::memset(base_ + h.bitmap, 0, words * 8);
  auto* bits = reinterpret_cast<uint64_t*>(base_ + h.bitmap);
  for (uint64_t b = 0; b < used; ++b) bits[b / 64] |= uint64_t{1} << (b % 64);
  for (uint64_t b = h.blocks; b < words * 64; ++b) bits[b / 64] |= uint64_t{1} << (b % 64);
  h.block_hint = used;
}

void Heap::read(Addr a, void* out, size_t n) const {
  check(a, n);
  auto* to = static_cast<char*>(out);
  const uint64_t* from = word(a);
  for (; n >= 8; n -= 8, to += 8, ++from) store_as(to, __atomic_load_n(from, __ATOMIC_RELAXED));
  if (n > 0) {
    const uint64_t last = __atomic_load_n(from, __ATOMIC_RELAXED);
    std::memcpy(to, &last, n);
  }
}

int Heap::compare(Addr a, size_t n, Bytes key) const {
  check(a, n);
  const size_t common = std::min(n, key.size());
  size_t i = 0;
  for (; i < common; i += 8) {
    const uint64_t ours = __atomic_load_n(word(a + i), __ATOMIC_RELAXED);
    uint64_t theirs = 0;
    const size_t width = std::min<size_t>(8, common - i);
    std::memcpy(&theirs, key.data() + i, width);
    const uint64_t mask = width == 8 ? ~uint64_t{0} : (uint64_t{1} << (width * 8)) - 1;
    if (((ours ^ theirs) & mask) != 0)
      return __builtin_bswap64(ours & mask) < __builtin_bswap64(theirs) ? -1 : 1;
  }
  return n == key.size() ? 0 : n < key.size() ? -1 : 1;
}

// An undo entry is {address, length, old bytes filled up to a word}; the tail is published before the heap changes.
void Heap::undo(Addr a, size_t n) {
  if (preserver_ != nullptr) open_blocks(a, n);
  if (n == 8) {  // the words that every operation of a transaction changes are kept once
    Noted& noted = noted_[(a >> 3) * 0x9e3779b1u % kNoted];
    if (noted.at == a && noted.transaction == transaction_) return;
    noted = {a, transaction_};
  }
  const uint64_t tail = control_->journal_tail, size = 16 + round_up(n, 8);
  if (size > control_->journal_capacity - tail)
    throw StoreError(Fault::full, "transaction: it changes more than the undo journal holds; make it smaller");
  std::byte* entry = journal_ + tail;
  store_as(entry, a);
  store_as(entry + 8, static_cast<uint64_t>(n));
  std::memcpy(entry + 16, base_ + a, round_up(n, 8));
  __atomic_store_n(&control_->journal_tail, tail + size, __ATOMIC_RELEASE);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

void Heap::open_blocks(Addr a, size_t n) {
  for (uint64_t b = a / kBlock; b <= (a + std::max<size_t>(n, 1) - 1) / kBlock; ++b) preserver_->before_write(b);
}

void Heap::write(Addr a, const void* bytes, size_t n) {
  check(a, round_up(n, 8));
  undo(a, round_up(n, 8));
  fill(a, bytes, n);
}

void Heap::fill(Addr a, const void* bytes, size_t n) {
  check(a, round_up(n, 8));
  if (preserver_ != nullptr) open_blocks(a, n);
  auto* from = static_cast<const char*>(bytes);
  uint64_t* to = word(a);
  for (; n >= 8; n -= 8, from += 8, ++to) __atomic_store_n(to, load_as<uint64_t>(from), __ATOMIC_RELAXED);
  if (n > 0) {
    uint64_t last = 0;
    std::memcpy(&last, from, n);
    __atomic_store_n(to, last, __ATOMIC_RELAXED);
  }
}

void Heap::change(Addr root) {
  const uint64_t sequence = load(root);
  if ((sequence & 1) != 0) return;
  if (control_->changed_count == kChangedLimit)
    throw StoreError(Fault::invalid, "transaction: it changes more than 64 structures; make it smaller");
  if (preserver_ != nullptr) open_blocks(root, 8);
  control_->changed[control_->changed_count] = root;
  __atomic_store_n(&control_->changed_count, control_->changed_count + 1, __ATOMIC_RELEASE);
  __atomic_store_n(word(root), sequence + 1, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
}

void Heap::change(Addr root, uint64_t part) {
  uint64_t* const sequence = sequences_ + sequence_of(root, part);
  if ((*sequence & 1) != 0) return;
  changed_parts_.push_back(sequence_of(root, part));
  __atomic_store_n(sequence, *sequence + 1, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
}

// The sequence words are no part of the transaction: whether it took effect or not, they go on to the next even number.
// Parts come last: whoever finds the part of a dropped structure at rest finds the catalog changed, too.
void Heap::release_readers() {
  for (uint64_t i = 0; i < std::min<uint64_t>(control_->changed_count, kChangedLimit); ++i) {
    uint64_t* const sequence = word(control_->changed[i]);
    __atomic_store_n(sequence, (*sequence | 1) + 1, __ATOMIC_RELEASE);
  }
  __atomic_store_n(&control_->changed_count, 0, __ATOMIC_RELEASE);
  for (const uint64_t i : changed_parts_) __atomic_store_n(sequences_ + i, sequences_[i] + 1, __ATOMIC_RELEASE);
  changed_parts_.clear();
}

void Heap::prepare() {
  for (const auto& [a, n] : released_) give_back(a, n);
  store(field(&header().applied_lsn), lsn_);
  prepared_ = true;
  persist_point("heap prepared");
}

// Memory that one large transaction took for the journal goes back to the machine.
void Heap::trim(uint64_t used) {
  if (used <= kJournalKept) return;
  std::byte* from = journal_ + kJournalKept;
  if (madvise(from, used - kJournalKept, MADV_REMOVE) != 0) madvise(from, used - kJournalKept, MADV_DONTNEED);
}

void Heap::commit() {
  if (!prepared_) prepare();
  const uint64_t used = control_->journal_tail;
  prepared_ = false;
  released_.clear();
  ++transaction_;
  persist_point("heap before commit");
  __atomic_store_n(&control_->journal_tail, 0, __ATOMIC_RELEASE);  // this store is the commit
  persist_point("heap after commit");
  release_readers();
  trim(used);
}

void Heap::rollback() {
  // Entries have no back links: find their starts, then undo from the last to the first.
  std::vector<uint64_t> starts;
  for (uint64_t at = 0; at < control_->journal_tail; at += 16 + round_up(load_as<uint64_t>(journal_ + at + 8), 8))
    starts.push_back(at);
  for (auto start = starts.rbegin(); start != starts.rend(); ++start) {
    const std::byte* entry = journal_ + *start;
    fill(load_as<Addr>(entry), entry + 16, load_as<uint64_t>(entry + 8));
    persist_point("heap rollback");
  }
  prepared_ = false;
  released_.clear();
  ++transaction_;
  __atomic_store_n(&control_->journal_tail, 0, __ATOMIC_RELEASE);
  release_readers();
}

// Which parts the killed writer was changing is known by their sequence words alone.
void Heap::recover() {
  for (uint64_t i = 0; i < kSequences; ++i)
    if ((sequences_[i] & 1) != 0) changed_parts_.push_back(i);
  rollback();
}

void Heap::pause(uint64_t tries) const {
  if (tries < 10000) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    return;
  }
  const auto owner = static_cast<pid_t>(__atomic_load_n(&control_->owner_pid, __ATOMIC_ACQUIRE));
  if (owner != 0 && kill(owner, 0) != 0 && errno == ESRCH)
    throw StoreError(Fault::missing, "store: its owner died in the middle of a change; open it for writing to repair it");
  std::this_thread::sleep_for(std::chrono::microseconds(100));
}

Addr Heap::allocate(size_t n) {
  HeapHeader& h = header();
  if (n == 0 || n > capacity_) throw StoreError(Fault::invalid, "heap: an object of this size cannot be");
  if (n > kSmallLimit) {
    const uint64_t count = round_up(n, kBlock) / kBlock;
    const Addr a = allocate_blocks(count) * kBlock;
    store(field(&h.used_bytes), h.used_bytes + count * kBlock);
    return a;
  }
  const int c = class_of(n);
  const size_t size = class_size(c);
  Addr a = h.free_lists[c];
  if (a != 0) {
    undo(a, 8);  // the link in it: whoever fills the object does so without undo
    store(field(&h.free_lists[c]), load(a));
  } else {
    if (h.bump[c] + size > h.bump_end[c]) {
      const Addr block = allocate_blocks(1) * kBlock;
      store(field(&h.bump[c]), block);
      store(field(&h.bump_end[c]), block + kBlock);
    }
    a = h.bump[c];
    store(field(&h.bump[c]), a + size);
  }
  store(field(&h.used_bytes), h.used_bytes + size);
  return a;
}

void Heap::release(Addr a, size_t n) {
  check(a, n);
  released_.emplace_back(a, n);
}

void Heap::give_back(Addr a, size_t n) {
  HeapHeader& h = header();
  if (n > kSmallLimit) {
    const uint64_t count = round_up(n, kBlock) / kBlock;
    mark_blocks(a / kBlock, count, false);
    store(field(&h.used_bytes), h.used_bytes - count * kBlock);
    return;
  }
  const int c = class_of(n);
  store(a, h.free_lists[c]);
  store(field(&h.free_lists[c]), a);
  store(field(&h.used_bytes), h.used_bytes - class_size(c));
}

// First fit from a hint that wraps around once.
Addr Heap::allocate_blocks(uint64_t count) {
  HeapHeader& h = header();
  const auto* bits = reinterpret_cast<const uint64_t*>(base_ + h.bitmap);
  for (const uint64_t from : {h.block_hint, uint64_t{0}}) {
    uint64_t run = 0;
    for (uint64_t b = from; b < h.blocks; ++b) {
      if (b % 64 == 0 && bits[b / 64] == ~uint64_t{0}) {
        run = 0;
        b += 63;
        continue;
      }
      run = (bits[b / 64] >> (b % 64) & 1) != 0 ? 0 : run + 1;
      if (run == count) {
        if (reserve_ && !reserve_((b + 1 - count) * kBlock, count * kBlock))
          throw StoreError(Fault::full, "heap: the machine has no shared memory left for it");
        mark_blocks(b + 1 - count, count, true);
        store(field(&h.block_hint), b + 1);
        return b + 1 - count;
      }
    }
  }
  throw StoreError(Fault::full, "heap: no room for " + std::to_string(count * kBlock) +
                                    " bytes; open the store with a larger capacity");
}

void Heap::mark_blocks(uint64_t first, uint64_t count, bool used) {
  const Addr bitmap = header().bitmap;
  for (uint64_t b = first; b < first + count;) {
    const uint64_t in_word = std::min<uint64_t>(64 - b % 64, first + count - b);
    const uint64_t mask = (in_word == 64 ? ~uint64_t{0} : (uint64_t{1} << in_word) - 1) << (b % 64);
    const Addr at = bitmap + b / 64 * 8;
    store(at, used ? load(at) | mask : load(at) & ~mask);
    b += in_word;
  }
  if (!used && first < header().block_hint) store(field(&header().block_hint), first);
}

}  // namespace statepool::store
