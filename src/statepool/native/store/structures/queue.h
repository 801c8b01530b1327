// Queue with leases. Items lie in the order they were put, in segments of slots; a slot says whether its item is ready,
// held until a deadline, or done. A segment counts its items that are back for another try and knows a time before
// which none of its leases ends, so a search goes by segments. One whose items are all done is released.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../item.h"
#include "hash_table.h"

namespace statepool::store {

struct Taken {
  uint64_t sequence = 0, attempts = 0, token = 0;
  std::string value;
};

template <class Mem>
class Queue {
 public:
  static constexpr uint64_t kRemembered = 65536;  // deduplication ids of acknowledged items that are kept

  Queue(Mem& mem, Addr root) : mem_(mem), root_(root) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    for (const Addr field : {kHead, kNext, kFresh, kBack}) mem.fill(root + field, uint64_t{1});
    mem.fill(root + kDeadline, kNever);
    mem.fill(root + kIds, HashTable<Mem>::create(mem));
    mem.fill(root + kDone, HashTable<Mem>::create(mem));
    return root;
  }

  void destroy() {
    const uint64_t next = get(kNext);
    for (uint64_t i = segment_of(get(kHead)); i < end_segment(); ++i) {
      const Addr segment = segment_at(i);
      if (segment == 0) continue;
      for (uint64_t s = i * kSlots + 1; s < std::min(next, (i + 1) * kSlots + 1); ++s)
        if (const Addr item = mem_.load(slot(segment, s) + kItem); item != 0) release_item(mem_, item);
      mem_.release(segment, kSegmentSize);
    }
    ids().destroy();
    done().destroy();
    if (get(kDirectory) != 0) mem_.release(get(kDirectory), get(kEntries) * 8);
    mem_.release(root_, kRootSize);
  }

  // False if an item of that id is known; `sequence` is its number, or that of the new one.
  bool put(Bytes value, Bytes id, uint64_t& sequence) {
    if (!id.empty() && known(id, sequence)) return false;
    sequence = get(kNext);
    const Addr segment = (sequence - 1) % kSlots == 0 ? add_segment() : segment_at(segment_of(sequence));
    const uint64_t words[] = {make_item(mem_, id, value), 0, 0, 0};
    mem_.fill(slot(segment, sequence), words, sizeof(words));
    set(kNext, sequence + 1);
    if (!id.empty()) ids().put(id, word(sequence));
    note_change(mem_, root_, 1, false);
    return true;
  }

  // The oldest item that is ready or whose lease has ended. A lease of 0 acknowledges it at once.
  bool take(uint64_t now, uint64_t lease, uint64_t owner, Taken& out) {
    if (get(kDeadline) <= now) expire(now);
    const uint64_t s = first_ready(get(kBack));
    if (s == get(kNext)) return false;
    const Addr segment = segment_at(segment_of(s)), at = slot(segment, s), item = mem_.load(at + kItem);
    uint64_t lsn = 0;
    mem_.touch(item, kItemGuess);
    read_value(mem_, item, out.value, lsn);
    out.sequence = s;
    out.attempts = mem_.load(at + kTries) + 1;
    out.token = mem_.lsn() << 8 | (owner & 0xff);
    set(kBack, s + 1);
    if (s == get(kFresh)) set(kFresh, s + 1);
    else mem_.store(segment + kReturned, mem_.load(segment + kReturned) - 1);
    if (lease == 0) {
      finish(s, segment);
    } else {
      const uint64_t words[] = {end_of(now, lease), out.token, out.attempts};
      mem_.write(at + kUntil, words, sizeof(words));
      hold(segment, words[0]);
      note_change(mem_, root_, 0, true);
    }
    return true;
  }

  // These do nothing and return false unless the item is held under this token.
  bool acknowledge(uint64_t sequence, uint64_t token) {
    const Addr segment = holder(sequence, token);
    if (segment == 0) return false;
    finish(sequence, segment);
    return true;
  }

  bool give_back(uint64_t sequence, uint64_t token) {
    const Addr segment = holder(sequence, token);
    if (segment == 0) return false;
    put_back(sequence, segment);
    note_change(mem_, root_, 0, false);
    return true;
  }

  bool extend(uint64_t sequence, uint64_t token, uint64_t now, uint64_t lease) {
    const Addr segment = holder(sequence, token);
    if (segment == 0) return false;
    mem_.store(slot(segment, sequence) + kUntil, end_of(now, lease));
    hold(segment, end_of(now, lease));
    note_change(mem_, root_, 0, false);
    return true;
  }

  // The value that a take would give after `index` other ones.
  bool front(uint64_t index, std::string& value, uint64_t& lsn) const {
    uint64_t s = first_ready(get(kBack));
    for (; index > 0 && s < get(kFresh); --index) s = first_ready(s + 1);
    s += index;
    if (s >= get(kNext)) return false;
    const Addr at = slot(segment_at(segment_of(s)), s);
    mem_.touch(at, kSlotSize);
    const Addr item = mem_.load(at + kItem);
    mem_.touch(item, kItemGuess);
    read_value(mem_, item, value, lsn);
    return true;
  }

  uint64_t size() const { return get(Root::size); }  // items not acknowledged

  // Numbers and values of items not acknowledged, from `start` on.
  void peek(uint64_t start, size_t limit, std::vector<std::pair<uint64_t, std::string>>& out) const {
    const uint64_t next = get(kNext);
    if (end_segment() - segment_of(get(kHead)) > get(kEntries)) throw Torn{};
    uint64_t lsn = 0;
    for (uint64_t s = std::max(start, get(kHead)); s < next && out.size() < limit;) {
      const Addr segment = segment_at(segment_of(s));
      const uint64_t end = std::min(next, (segment_of(s) + 1) * kSlots + 1);
      if (segment == 0) s = end;
      else mem_.touch(segment, kSegmentSize);
      for (; s < end && out.size() < limit; ++s) {
        const Addr item = mem_.load(slot(segment, s) + kItem);
        if (item == 0) continue;
        out.emplace_back(s, std::string());
        read_value(mem_, item, out.back().second, lsn);
      }
    }
  }

 private:
  static constexpr uint64_t kNever = ~uint64_t{0};
  // A slot: its item (0: done), the end of its lease (0: ready), its token, how often it was taken.
  static constexpr Addr kItem = 0, kUntil = 8, kToken = 16, kTries = 24, kSlotSize = 32;
  // A segment: how many of its items are done, how many are ready that were taken before, a time before which no lease
  // of them ends; then its slots.
  static constexpr Addr kFinished = 0, kReturned = 8, kSoonest = 16, kFirst = 32;
  static constexpr uint64_t kSlots = 127, kSegmentSize = kFirst + kSlots * kSlotSize;
  // kHead: nothing before it is left. kFresh: the first item that was never taken. kBack: no item before it is ready.
  // kNext: the next number. kDeadline: no lease ends before it. Segments are found through a ring of their addresses (0:
  // released), kDirectory, of kEntries (a power of two) words.
  static constexpr Addr kHead = Root::own, kBack = kHead + 8, kFresh = kBack + 8, kNext = kFresh + 8,
                        kDeadline = kNext + 8, kIds = kDeadline + 8, kDone = kIds + 8, kDoneNext = kDone + 8,
                        kDirectory = kDoneNext + 8, kEntries = kDirectory + 8, kRootSize = kEntries + 8;

  uint64_t get(Addr field) const { return mem_.load(root_ + field); }
  void set(Addr field, uint64_t value) { mem_.store(root_ + field, value); }
  HashTable<Mem> ids() const { return {mem_, get(kIds)}; }    // id -> sequence, of items in the queue and remembered ones
  HashTable<Mem> done() const { return {mem_, get(kDone)}; }  // ring place -> id, of remembered ones

  static std::string word(uint64_t v) { return {reinterpret_cast<const char*>(&v), 8}; }
  static uint64_t end_of(uint64_t now, uint64_t lease) { return lease < kNever - now ? now + lease : kNever; }

  // ---- where an item lies ----------------------------------------------------------------------------------------
  static uint64_t segment_of(uint64_t sequence) { return (sequence - 1) / kSlots; }
  uint64_t end_segment() const { return segment_of(get(kNext) + kSlots - 1); }
  Addr entry(uint64_t segment) const { return get(kDirectory) + (segment & (get(kEntries) - 1)) * 8; }
  Addr segment_at(uint64_t segment) const { return mem_.load(entry(segment)); }
  static Addr slot(Addr segment, uint64_t sequence) { return segment + kFirst + (sequence - 1) % kSlots * kSlotSize; }

  Addr add_segment() {
    const uint64_t first = segment_of(get(kHead)), end = end_segment(), entries = get(kEntries);
    if (end - first >= entries) {
      const uint64_t more = std::max<uint64_t>(8, 2 * entries);
      const Addr bigger = mem_.allocate(more * 8);
      for (uint64_t i = first; i < end; ++i) mem_.fill(bigger + (i & (more - 1)) * 8, segment_at(i));
      if (entries > 0) mem_.release(get(kDirectory), entries * 8);
      set(kDirectory, bigger);
      set(kEntries, more);
    }
    const Addr segment = mem_.allocate(kSegmentSize);
    const uint64_t words[] = {0, 0, kNever};
    mem_.fill(segment, words, sizeof(words));
    mem_.store(entry(end), segment);
    return segment;
  }

  // ---- leases ------------------------------------------------------------------------------------------------------
  // The segment of an item that is held under this token, 0 if it is not.
  Addr holder(uint64_t s, uint64_t token) const {
    if (s < get(kHead) || s >= get(kFresh)) return 0;
    const Addr segment = segment_at(segment_of(s)), at = slot(segment, s);
    if (segment == 0) return 0;
    const bool held = mem_.load(at + kItem) != 0 && mem_.load(at + kUntil) != 0 && mem_.load(at + kToken) == token;
    return held ? segment : 0;
  }

  void hold(Addr segment, uint64_t until) {
    if (until < mem_.load(segment + kSoonest)) mem_.store(segment + kSoonest, until);
    if (until < get(kDeadline)) set(kDeadline, until);
  }

  void put_back(uint64_t s, Addr segment) {
    mem_.store(slot(segment, s) + kUntil, 0);
    mem_.store(segment + kReturned, mem_.load(segment + kReturned) + 1);
    if (s < get(kBack)) set(kBack, s);
  }

  // The oldest item from `s` on that is ready; the next number if there is none.
  uint64_t first_ready(uint64_t s) const {
    const uint64_t fresh = get(kFresh);
    s = std::max(s, get(kHead));
    while (s < fresh) {
      const Addr segment = segment_at(segment_of(s));
      const uint64_t end = std::min(fresh, (segment_of(s) + 1) * kSlots + 1);
      if (segment == 0 || mem_.load(segment + kReturned) == 0) s = end;
      else if (s < end && !ready(slot(segment, s))) ++s;
      else break;
    }
    return s;
  }

  bool ready(Addr at) const { return mem_.load(at + kItem) != 0 && mem_.load(at + kUntil) == 0; }

  // Items whose lease has ended are ready again.
  void expire(uint64_t now) {
    uint64_t soonest = kNever;
    const uint64_t fresh = get(kFresh);
    for (uint64_t i = segment_of(get(kHead)); i * kSlots + 1 < fresh; ++i) {
      const Addr segment = segment_at(i);
      if (segment == 0) continue;
      if (mem_.load(segment + kSoonest) <= now) expire(i, segment, now);
      soonest = std::min(soonest, mem_.load(segment + kSoonest));
    }
    set(kDeadline, soonest);
  }

  void expire(uint64_t index, Addr segment, uint64_t now) {
    uint64_t soonest = kNever;
    const uint64_t end = std::min(get(kFresh), (index + 1) * kSlots + 1);
    for (uint64_t s = index * kSlots + 1; s < end; ++s) {
      const Addr at = slot(segment, s);
      const uint64_t until = mem_.load(at + kUntil);
      if (until == 0 || mem_.load(at + kItem) == 0) continue;
      if (until > now) soonest = std::min(soonest, until);
      else put_back(s, segment);
    }
    mem_.store(segment + kSoonest, soonest);
  }

  void finish(uint64_t s, Addr segment) {
    const Addr at = slot(segment, s), item = mem_.load(at + kItem);
    if (item_at(mem_, item).key_size != 0) remember(key_of(mem_, item));
    release_item(mem_, item);
    mem_.store(at + kItem, 0);
    note_change(mem_, root_, -1, true);
    const uint64_t finished = mem_.load(segment + kFinished) + 1;
    mem_.store(segment + kFinished, finished);
    if (finished < kSlots) return;
    mem_.store(entry(segment_of(s)), 0);
    mem_.release(segment, kSegmentSize);
    uint64_t i = segment_of(get(kHead));
    for (const uint64_t end = end_segment(); i < end && segment_at(i) == 0;) ++i;
    set(kHead, i * kSlots + 1);
  }

  // ---- deduplication -----------------------------------------------------------------------------------------------
  bool known(Bytes id, uint64_t& sequence) const {
    std::string value;
    uint64_t lsn = 0;
    if (!ids().get(id, value, lsn)) return false;
    sequence = load_as<uint64_t>(value.data());
    return true;
  }

  void remember(Bytes id) {
    const uint64_t place = get(kDoneNext);
    const std::string key = word(place % kRemembered);
    std::string oldest;
    uint64_t lsn = 0;
    if (done().get(key, oldest, lsn)) ids().erase(oldest);
    done().put(key, id);
    set(kDoneNext, place + 1);
  }

  Mem& mem_;
  Addr root_;
};

}  // namespace statepool::store
