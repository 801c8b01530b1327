// Queue with leases. Items lie in the order they were put, in segments of slots; a slot says whether its item is ready,
// held until a deadline, or done. Segments whose items are all done are released from the front.
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
    mem.fill(root + kHead, uint64_t{1});
    mem.fill(root + kNext, uint64_t{1});
    mem.fill(root + kReady, uint64_t{1});
    mem.fill(root + kDeadline, ~uint64_t{0});
    mem.fill(root + kIds, HashTable<Mem>::create(mem));
    mem.fill(root + kDone, HashTable<Mem>::create(mem));
    return root;
  }

  void destroy() {
    for (uint64_t s = get(kHead); s < get(kNext); ++s)
      if (const Addr item = mem_.load(slot(s) + kItem); item != 0) release_item(mem_, item);
    for (uint64_t i = first_segment(); i < end_segment(); ++i) mem_.release(mem_.load(entry(i)), kSegmentSize);
    ids().destroy();
    done().destroy();
    if (get(kDirectory) != 0) mem_.release(get(kDirectory), get(kEntries) * 8);
    mem_.release(root_, kRootSize);
  }

  // False if an item of that id is known; `sequence` is its number, or that of the new one.
  bool put(Bytes value, Bytes id, uint64_t& sequence) {
    if (!id.empty() && known(id, sequence)) return false;
    sequence = get(kNext);
    if ((sequence - 1) % kSlots == 0) add_segment();
    const Addr at = slot(sequence);
    mem_.fill(at + kItem, make_item(mem_, id, value));
    mem_.fill(at + kUntil, uint64_t{0});
    mem_.fill(at + kTries, uint64_t{0});
    set(kNext, sequence + 1);
    if (!id.empty()) ids().put(id, word(sequence));
    note_change(mem_, root_, 1, false);
    return true;
  }

  // The oldest item that is ready or whose lease has ended. A lease of 0 acknowledges it at once.
  bool take(uint64_t now, uint64_t lease, uint64_t owner, Taken& out) {
    if (get(kDeadline) <= now) expire(now);
    uint64_t s = get(kReady);
    const uint64_t next = get(kNext);
    while (s < next && !ready(s)) ++s;
    set(kReady, s);
    if (s == next) return false;
    const Addr at = slot(s), item = mem_.load(at + kItem);
    uint64_t lsn = 0;
    mem_.touch(item, kItemGuess);
    read_value(mem_, item, out.value, lsn);
    out.sequence = s;
    out.attempts = mem_.load(at + kTries) + 1;
    out.token = mem_.lsn() << 8 | (owner & 0xff);
    mem_.store(at + kTries, out.attempts);
    set(kReady, s + 1);
    if (lease == 0) {
      finish(s);
    } else {
      mem_.store(at + kUntil, now + lease);
      mem_.store(at + kToken, out.token);
      if (now + lease < get(kDeadline)) set(kDeadline, now + lease);
      note_change(mem_, root_, 0, true);
    }
    return true;
  }

  // These do nothing and return false unless the item is held under this token.
  bool acknowledge(uint64_t sequence, uint64_t token) {
    if (!holds(sequence, token)) return false;
    finish(sequence);
    return true;
  }

  bool give_back(uint64_t sequence, uint64_t token) {
    if (!holds(sequence, token)) return false;
    mem_.store(slot(sequence) + kUntil, 0);
    if (sequence < get(kReady)) set(kReady, sequence);
    note_change(mem_, root_, 0, false);
    return true;
  }

  bool extend(uint64_t sequence, uint64_t token, uint64_t now, uint64_t lease) {
    if (!holds(sequence, token)) return false;
    mem_.store(slot(sequence) + kUntil, now + lease);
    if (now + lease < get(kDeadline)) set(kDeadline, now + lease);
    note_change(mem_, root_, 0, false);
    return true;
  }

  // The value `index` places behind the oldest ready item, if all from there on are ready too.
  bool front(uint64_t index, std::string& value, uint64_t& lsn) const {
    const uint64_t s = get(kReady) + index;
    if (s >= get(kNext)) return false;
    const Addr at = slot(s);
    mem_.touch(at, kSlotSize);
    if (!ready(s)) return false;
    const Addr item = mem_.load(at + kItem);
    mem_.touch(item, kItemGuess);
    read_value(mem_, item, value, lsn);
    return true;
  }

  uint64_t size() const { return get(Root::size); }  // items not acknowledged

  // Numbers and values of items not acknowledged, from `start` on.
  void peek(uint64_t start, size_t limit, std::vector<std::pair<uint64_t, std::string>>& out) const {
    const uint64_t next = get(kNext);
    for (uint64_t s = std::max(start, get(kHead)); s < next && out.size() < limit; ++s) {
      const Addr item = mem_.load(slot(s) + kItem);
      if (item == 0) continue;
      uint64_t lsn = 0;
      out.emplace_back(s, std::string());
      read_value(mem_, item, out.back().second, lsn);
    }
  }

 private:
  // A slot: its item (0: done), the end of its lease (0: ready), its token, how often it was taken.
  static constexpr Addr kItem = 0, kUntil = 8, kToken = 16, kTries = 24, kSlotSize = 32;
  static constexpr uint64_t kSlots = 128, kSegmentSize = kSlots * kSlotSize;
  // kHead: the oldest item not done. kNext: the next number. kReady: nothing before it is ready. kDeadline: no lease ends
  // before it. Segments are found through a ring of their addresses, kDirectory, of kEntries (a power of two) words.
  static constexpr Addr kHead = Root::own, kNext = kHead + 8, kReady = kNext + 8, kDeadline = kReady + 8,
                        kIds = kDeadline + 8, kDone = kIds + 8, kDoneNext = kDone + 8, kDirectory = kDoneNext + 8,
                        kEntries = kDirectory + 8, kRootSize = kEntries + 8;

  uint64_t get(Addr field) const { return mem_.load(root_ + field); }
  void set(Addr field, uint64_t value) {
    if (get(field) != value) mem_.store(root_ + field, value);
  }
  HashTable<Mem> ids() const { return {mem_, get(kIds)}; }    // id -> sequence, of items in the queue and remembered ones
  HashTable<Mem> done() const { return {mem_, get(kDone)}; }  // ring place -> id, of remembered ones

  static std::string word(uint64_t v) { return {reinterpret_cast<const char*>(&v), 8}; }

  // ---- where an item lies ----------------------------------------------------------------------------------------
  static uint64_t segment_of(uint64_t sequence) { return (sequence - 1) / kSlots; }
  uint64_t first_segment() const { return segment_of(get(kHead)); }
  uint64_t end_segment() const { return (get(kNext) - 1 + kSlots - 1) / kSlots; }
  Addr entry(uint64_t segment) const {
    const uint64_t entries = get(kEntries);
    if (entries == 0) throw Torn{};
    return get(kDirectory) + segment % entries * 8;
  }
  Addr slot(uint64_t sequence) const { return mem_.load(entry(segment_of(sequence))) + (sequence - 1) % kSlots * kSlotSize; }

  void add_segment() {
    const uint64_t first = first_segment(), end = end_segment(), entries = get(kEntries);
    if (end - first >= entries) {
      const uint64_t more = std::max<uint64_t>(8, 2 * entries);
      const Addr bigger = mem_.allocate(more * 8);
      for (uint64_t i = first; i < end; ++i) mem_.fill(bigger + i % more * 8, mem_.load(entry(i)));
      if (entries > 0) mem_.release(get(kDirectory), entries * 8);
      set(kDirectory, bigger);
      set(kEntries, more);
    }
    mem_.store(entry(end), mem_.allocate(kSegmentSize));
  }

  // ---- states ------------------------------------------------------------------------------------------------------
  bool ready(uint64_t s) const { return mem_.load(slot(s) + kItem) != 0 && mem_.load(slot(s) + kUntil) == 0; }

  bool holds(uint64_t s, uint64_t token) const {
    if (s < get(kHead) || s >= get(kNext)) return false;
    const Addr at = slot(s);
    return mem_.load(at + kItem) != 0 && mem_.load(at + kUntil) != 0 && mem_.load(at + kToken) == token;
  }

  // Items whose lease has ended are ready again.
  void expire(uint64_t now) {
    uint64_t earliest = ~uint64_t{0};
    for (uint64_t s = get(kHead); s < get(kNext); ++s) {
      const uint64_t until = mem_.load(slot(s) + kUntil);
      if (until == 0 || mem_.load(slot(s) + kItem) == 0) continue;
      if (until > now) {
        earliest = std::min(earliest, until);
        continue;
      }
      mem_.store(slot(s) + kUntil, 0);
      if (s < get(kReady)) set(kReady, s);
    }
    set(kDeadline, earliest);
  }

  void finish(uint64_t s) {
    const Addr at = slot(s), item = mem_.load(at + kItem);
    const std::string id = key_of(mem_, item);
    if (!id.empty()) remember(id);
    release_item(mem_, item);
    mem_.store(at + kItem, 0);
    note_change(mem_, root_, -1, true);
    uint64_t head = get(kHead);
    for (const uint64_t next = get(kNext); head < next && mem_.load(slot(head) + kItem) == 0; ++head)
      if (head % kSlots == 0) mem_.release(mem_.load(entry(segment_of(head))), kSegmentSize);
    set(kHead, head);
    if (get(kReady) < head) set(kReady, head);
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
