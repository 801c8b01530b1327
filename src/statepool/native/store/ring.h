// The staging ring: operations between their call and their frame in the log.
//
// It lies in shared memory, so a record in it outlives the process: that is the durability level `process`. A group
// commit takes out whole transactions and makes one frame of them.
#pragma once

#include <initializer_list>

#include "heap.h"
#include "persist_point.h"
#include "record.h"

namespace statepool::store {

// One thread at a time puts in (the writer), one takes out (the committer). Positions only grow; the place of a
// position is its remainder by the capacity. A record lies in one piece: where it would cross the end, a mark says
// that the ring goes on at its start.
class Ring {
 public:
  explicit Ring(Heap& heap)
      : control_(heap.control()), bytes_(heap.ring()), capacity_(control_.ring_capacity), staged_(control_.ring_tail) {}

  uint64_t capacity() const { return capacity_; }
  bool empty() const { return head() >= tail(); }
  uint64_t held() const { return empty() ? 0 : tail() - head(); }

  // ---- the writer ---------------------------------------------------------------------------------------------
  // Drops what was staged and not published.
  void start() {
    staged_ = tail();
    if (empty() && staged_ % capacity_ != 0) {  // begin at the front again: those bytes are still in the cache
      staged_ = round_up(staged_, capacity_);
      __atomic_store_n(&control_.ring_head, staged_, __ATOMIC_RELEASE);
      persist_point("ring restart");
      __atomic_store_n(&control_.ring_tail, staged_, __ATOMIC_RELEASE);
    }
  }

  // Copies one record in; `body` is its parts in order, each filled up to a word. False if there is no room now.
  bool stage(RecordHeader header, std::initializer_list<Bytes> body) {
    uint64_t length = 0;
    for (const Bytes& part : body) length += round_up(part.size(), 8);
    header.length = static_cast<uint32_t>(length);
    const uint64_t size = sizeof(RecordHeader) + length, rest = capacity_ - staged_ % capacity_;
    const uint64_t skipped = size > rest ? rest : 0;
    if (size + skipped > capacity_ - (staged_ - head())) return false;
    if (skipped > 0) {
      store_as(bytes_ + staged_ % capacity_, kSkip);
      staged_ += skipped;
    }
    std::byte* at = bytes_ + staged_ % capacity_;
    store_as(at, header);
    at += sizeof(RecordHeader);
    for (const Bytes& part : body) {
      const uint64_t whole = round_up(part.size(), 8);
      if (whole != part.size()) store_as(at + whole - 8, uint64_t{0});
      std::memcpy(at, part.data(), part.size());
      at += whole;
    }
    staged_ += size;
    return true;
  }

  void publish() { __atomic_store_n(&control_.ring_tail, staged_, __ATOMIC_RELEASE); }

  // ---- the committer ------------------------------------------------------------------------------------------
  // Hands over whole transactions from the head on, record by record, up to `limit` bytes but at least one
  // transaction; returns the position behind them. They stay until taken().
  template <class Visit>
  uint64_t peek(uint64_t limit, Visit&& visit) const {
    const uint64_t begin = head(), end = tail();
    uint64_t last = begin, bytes = 0;
    for (Step s{nullptr, 0, begin, false}; s.next < end && (bytes <= limit || last == begin);) {
      s = step(s.next);
      bytes += s.size;
      if (s.ends && (bytes <= limit || last == begin)) last = s.next;
    }
    for (uint64_t at = begin; at < last;) {
      const Step s = step(at);
      visit(s.record, s.size);
      at = s.next;
    }
    return last;
  }

  // Every record in it: visit(record, size, position behind it).
  template <class Visit>
  void each(Visit&& visit) const {
    for (uint64_t at = head(); at < tail();) {
      const Step s = step(at);
      visit(s.record, s.size, s.next);
      at = s.next;
    }
  }

  void taken(uint64_t position) { __atomic_store_n(&control_.ring_head, position, __ATOMIC_RELEASE); }

 private:
  struct Step {
    const std::byte* record;
    uint64_t size, next;
    bool ends;  // a transaction
  };
  static constexpr uint32_t kSkip = 0xffffffff;

  uint64_t head() const { return __atomic_load_n(&control_.ring_head, __ATOMIC_ACQUIRE); }
  uint64_t tail() const { return __atomic_load_n(&control_.ring_tail, __ATOMIC_ACQUIRE); }

  Step step(uint64_t at) const {
    if (load_as<uint32_t>(bytes_ + at % capacity_) == kSkip) at = round_up(at + 1, capacity_);
    const std::byte* record = bytes_ + at % capacity_;
    const auto header = load_as<RecordHeader>(record);
    const uint64_t size = sizeof(RecordHeader) + round_up(header.length, 8);
    return {record, size, at + size, (header.flags & kTransactionEnd) != 0};
  }

  Control& control_;
  std::byte* bytes_;
  uint64_t capacity_, staged_;
};

}  // namespace statepool::store
