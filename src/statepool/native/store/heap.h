// The heap: the memory that all structures of a store live in, shared with readers in other processes.
//
// A structure is a set of objects (nodes, items) at addresses in one mapping. One thread at a time writes, inside a
// transaction whose old bytes go to the undo journal first: a writer killed at any instruction leaves a heap that rolls
// back to the end of its last transaction. Readers take no lock: they read words that may change under them, every
// access held inside the heap, and ask the structure's sequence word afterwards whether it was still.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "bytes.h"
#include "errors.h"
#include "log_tail.h"

namespace statepool::store {

using Addr = uint64_t;  // byte offset in the heap, a multiple of 8; 0 is null

// A reader met an address outside the heap or a length that cannot be: the structure changed meanwhile. Retry.
struct Torn {};

constexpr size_t kBlock = 64 << 10;      // what the first tier of the allocator hands out
constexpr size_t kSmallLimit = 32 << 10;  // larger objects are whole blocks
constexpr int kClasses = 40;             // sizes 16, 32 .. 128, then four per doubling up to kSmallLimit
constexpr int kChangedLimit = 64;        // structures that one transaction may change
constexpr uint64_t kParts = 256;         // of a structure whose readers watch only the part they read
constexpr uint64_t kSequences = 4096;    // words for the parts of all structures: some share one, and retry together

size_t object_size(size_t n);  // what an object of n bytes takes: its class, or whole blocks

// The control page and the parts' sequence words lie before the heap and are no part of a checkpoint.
struct Control {
  uint64_t magic, capacity, journal_capacity, ring_capacity;
  uint8_t uuid[16];
  uint64_t nonce;         // names this mapping: a restored snapshot of the machine has another one
  uint64_t journal_tail;  // bytes of undo entries; above 0 a transaction is open
  uint64_t changed_count;
  Addr changed[kChangedLimit];  // roots whose sequence word is odd
  uint64_t durable_lsn;         // every operation up to here survives a power loss
  uint64_t logged_lsn;          // every operation up to here is in the staging ring or the log
  uint64_t ring_head, ring_tail;  // bytes of the staging ring taken out, put in; both only grow
  uint64_t epoch;
  uint64_t owner_pid;  // 0: the owner has let go
  uint64_t waits;      // whether readers are told only what survives a power loss
  LogTail tails[2];    // written in turn, each before the operations of its frame count as durable
};
static_assert(sizeof(Control) <= kSector);

// The first page of the heap; all of it is undone and checkpointed like any other word.
struct HeapHeader {
  uint64_t magic, applied_lsn;
  uint64_t blocks;          // of the heap, the header's own included
  uint64_t block_hint;      // where the search for free blocks starts
  Addr bitmap;              // one bit per block, set = in use
  Addr catalog;             // root of the table of structures
  Addr clients;             // root of the table of the last operation of each client
  uint64_t used_bytes;      // in live objects, rounded up to their class
  Addr free_lists[kClasses];
  Addr bump[kClasses], bump_end[kClasses];  // the rest of the block that a class is being cut from
};
static_assert(sizeof(HeapHeader) <= kSector);

// Keeps the old content of blocks for a checkpoint that is being written (checkpoint.h).
class Preserver {
 public:
  virtual ~Preserver() = default;
  virtual void before_write(uint64_t block) = 0;
};

class Heap {
 public:
  // Over mapped memory: a Control, sequence words, the journal, the staging ring, the heap. `format` makes an empty heap of it.
  Heap(std::byte* region, bool format);
  static uint64_t region_size(uint64_t capacity, uint64_t journal, uint64_t ring);
  static void prepare(std::byte* region, uint64_t capacity, uint64_t journal, uint64_t ring);

  // ---- reading: any thread, any process --------------------------------------------------------------------------
  uint64_t load(Addr a) const {
    check(a, 8);
    return __atomic_load_n(word(a), __ATOMIC_RELAXED);
  }
  void read(Addr a, void* out, size_t n) const;
  // Sign of the n bytes at a against key: as memcmp, then the shorter one is less.
  int compare(Addr a, size_t n, Bytes key) const;
  // A sequence word (odd: being changed), of a whole structure or of one of its kParts parts; its present value, and
  // whether nothing changed since that was `before`.
  using Watch = const uint64_t*;
  Watch watch(Addr root) const {
    check(root, 8);
    return word(root);
  }
  Watch watch(Addr root, uint64_t part) const { return sequences_ + sequence_of(root, part); }
  static uint64_t sequence(Watch w) { return __atomic_load_n(w, __ATOMIC_ACQUIRE); }
  static bool still(Watch w, uint64_t before) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n(w, __ATOMIC_RELAXED) == before;
  }
  // Between two tries of a reader; after many of them it sleeps a little. StoreError: missing if the writer died in the
  // middle of a change.
  void pause(uint64_t tries) const;
  // Says that the object of n bytes at a is read next: a prefetch here, one remote read on a front-end. Of a small object
  // all lines are on their way then, of a page those that a search in it reads first (page.h). n may be a guess that goes
  // past the end of the heap, so only the address is checked.
  void touch(Addr a, size_t n) const {
    check(a, 8);
    const size_t step = n < kSector ? 64 : 256, end = std::min<size_t>(n < kSector ? n : kSector / 2, capacity_ - a);
    for (size_t i = 0; i < end; i += step) __builtin_prefetch(base_ + a + i);
  }

  // ---- writing: one thread, up to commit() or rollback() --------------------------------------------
  void prepare();   // the last step of a transaction that can fail; commit() takes it if nobody did
  void commit();    // everything since the last one takes effect, applied_lsn() becomes lsn()
  void rollback();  // nothing of it does
  void store(Addr a, uint64_t value) {
    check(a, 8);
    undo(a, 8);
    __atomic_store_n(word(a), value, __ATOMIC_RELAXED);
  }
  void write(Addr a, const void* bytes, size_t n);  // whole words: the last one is filled up with zeros
  // The same without undo, for memory that this transaction allocated.
  void fill(Addr a, const void* bytes, size_t n);
  void fill(Addr a, uint64_t value) {
    check(a, 8);
    __atomic_store_n(word(a), value, __ATOMIC_RELAXED);
  }
  Addr allocate(size_t n);         // contents undefined. StoreError: full
  void release(Addr a, size_t n);  // n as given to allocate(); free for others after commit()
  // Makes readers of the structure at `root`, whose first word is its sequence word, retry until commit().
  void change(Addr root);
  void change(Addr root, uint64_t part);  // readers of that part; those of the whole need the call above
  uint64_t lsn() const { return lsn_; }  // of the operation that is being applied
  void set_lsn(uint64_t lsn) { lsn_ = lsn; }
  // Whether what operation `lsn` made belongs to this transaction: nobody else has seen it.
  bool unseen(uint64_t lsn) const { return lsn > header().applied_lsn; }

  // ---- the whole --------------------------------------------------------------------------------------------------
  Control& control() { return *control_; }
  const Control& control() const { return *control_; }
  HeapHeader& header() { return *reinterpret_cast<HeapHeader*>(base_); }
  const HeapHeader& header() const { return *reinterpret_cast<const HeapHeader*>(base_); }
  std::byte* ring() { return ring_; }
  std::byte* base() { return base_; }
  uint64_t capacity() const { return capacity_; }
  uint64_t applied_lsn() const { return __atomic_load_n(&header().applied_lsn, __ATOMIC_ACQUIRE); }
  void recover();  // after a killed writer: rolls back what was open
  void set_preserver(Preserver* p) { preserver_ = p; }
  // Asked before blocks are used for the first time: whether the machine has memory for them.
  void set_reserve(std::function<bool(Addr, uint64_t)> reserve) { reserve_ = std::move(reserve); }

 private:
  void check(Addr a, size_t n) const {
    if ((a & 7) != 0 || a > capacity_ || n > capacity_ - a) throw Torn{};
  }
  uint64_t* word(Addr a) const { return reinterpret_cast<uint64_t*>(base_ + a); }
  void undo(Addr a, size_t n);
  void open_blocks(Addr a, size_t n);
  Addr allocate_blocks(uint64_t count);
  void give_back(Addr a, size_t n);
  static constexpr uint64_t kJournalKept = 32 << 20;
  void trim(uint64_t used);
  void mark_blocks(uint64_t first, uint64_t count, bool used);
  static uint64_t sequence_of(Addr root, uint64_t part) {
    return ((root * 0x9e3779b97f4a7c15 >> 52) + part) % kSequences;
  }
  void release_readers();
  Addr field(const void* member) const {
    return static_cast<Addr>(static_cast<const std::byte*>(member) - base_);
  }

  Control* control_;
  uint64_t* sequences_;
  std::byte *journal_, *ring_, *base_;
  uint64_t capacity_, lsn_ = 0;
  static constexpr size_t kNoted = 512;
  struct Noted {
    Addr at;
    uint64_t transaction;
  };
  Noted noted_[kNoted] = {};   // words of the present transaction whose old value is in the journal already
  uint64_t transaction_ = 1;
  // Released by the present transaction. Were they handed out again before it commits, they would be filled without
  // undo, and a rollback would find other bytes in them than the ones it brings back to life.
  std::vector<std::pair<Addr, size_t>> released_;
  std::vector<uint64_t> changed_parts_;  // sequence words that are odd
  bool prepared_ = false;
  Preserver* preserver_ = nullptr;
  std::function<bool(Addr, uint64_t)> reserve_;
};

// Runs `body` until it saw the structure at `root` unchanged from start to end; `retries` counts the other times.
template <class Mem, class Body>
auto read_stable(const Mem& mem, Addr root, uint64_t& retries, Body&& body) {
  for (;; ++retries) {
    const auto watch = mem.watch(root);
    const uint64_t before = mem.sequence(watch);
    if ((before & 1) == 0) {
      try {
        auto result = body();
        if (mem.still(watch, before)) return result;
      } catch (const Torn&) {
        if (mem.still(watch, before)) throw StoreError(Fault::corrupt, "heap: a structure points outside the heap");
      }
    }
    mem.pause(retries);
  }
}

}  // namespace statepool::store
