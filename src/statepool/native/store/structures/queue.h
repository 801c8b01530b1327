// Queue with leases. Items lie in the order they were put, in segments of slots. Those that nobody has taken yet are all
// behind one point; those that came back wait in a heap by number, which is served first; the ends of leases are in
// another, which forgets lazily: an entry counts only while its slot names the same end.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../item.h"
#include "min_heap.h"
#include "recent_ids.h"
#include "segments.h"

namespace statepool::store {

struct Taken {
  uint64_t sequence = 0, attempts = 0, token = 0;
  std::string value;
};

template <class Mem>
class Queue {
 public:
  Queue(Mem& mem, Addr root)
      : mem_(mem),
        root_(root),
        segments_(mem, root + kSegments, kSegmentSize),
        leases_(mem, root + kLeases),
        returned_(mem, root + kReturned),
        ids_(mem, root + kIds) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    for (const Addr field : {kHead, kNext, kFresh}) mem.fill(root + field, uint64_t{1});
    RecentIds<Mem>::create(mem, root + kIds);
    return root;
  }

  void destroy() {
    for (uint64_t s = occupied(get(kHead)); s < get(kNext); s = occupied(s + 1))
      release_item(mem_, mem_.load(slot(s) + kItem));
    segments_.destroy(segment_of(get(kHead)), end_segment());
    while (get(kDead) != 0) release_dead();
    leases_.destroy();
    returned_.destroy();
    ids_.destroy();
    mem_.release(root_, kRootSize);
  }

  // False if an item of that id is known; `sequence` is its number, or that of the new one. An empty id is none.
  bool put(Bytes value, Bytes id, uint64_t& sequence) {
    if (!id.empty() && ids_.known(id, sequence)) return false;
    sequence = get(kNext);
    if ((sequence - 1) % kSlots == 0) segments_.add(segment_of(sequence), segment_of(get(kHead)));
    const uint64_t words[] = {make_item(mem_, id, value), 0, 0, 0};
    mem_.write(slot(sequence), words, kSlotSize);
    set(kNext, sequence + 1);
    if (!id.empty()) ids_.add(id, sequence);
    note_change(mem_, root_, 1, false);
    return true;
  }

  // The oldest item that is ready or whose lease has ended. A lease of 0 acknowledges it at once. If there is none, the
  // heap stays as it is: such a call is not logged.
  bool take(uint64_t now, uint64_t lease, uint64_t owner, Taken& out) {
    if (get(kFresh) == get(kNext) && returned_.size() == 0 && !some_lease_ended(now, false)) return false;
    do end_leases(now);
    while (returned_.size() == 0 && get(kFresh) == get(kNext));
    uint64_t s = get(kFresh);
    if (returned_.size() > 0) s = returned_.pop().number;
    else set(kFresh, s + 1);
    const Addr at = slot(s), item = mem_.load(at + kItem);
    uint64_t lsn = 0;
    mem_.touch(item, kItemGuess);
    read_value(mem_, item, out.value, lsn);
    out.sequence = s;
    out.attempts = mem_.load(at + kTries) + 1;
    out.token = mem_.lsn() << 8 | (owner & 0xff);
    if (lease == 0) {
      finish(s, at, item);
      return true;
    }
    const uint64_t words[] = {until(now, lease), out.token, out.attempts};
    mem_.write(at + kUntil, words, sizeof(words));
    set(kLeased, get(kLeased) + 1);
    add_lease(words[0], s);
    note_change(mem_, root_, 0, true);
    return true;
  }

  // These three do nothing and return false unless the item is held under this token. A lease that has ended counts until
  // a take has put the item back.
  bool acknowledge(uint64_t sequence, uint64_t token) {
    const Addr at = held(sequence, token);
    if (at == 0) return false;
    set(kLeased, get(kLeased) - 1);
    finish(sequence, at, mem_.load(at + kItem));
    return true;
  }

  bool give_back(uint64_t sequence, uint64_t token) {
    const Addr at = held(sequence, token);
    if (at == 0) return false;
    if (let_go(sequence, at)) returned_.push({sequence, sequence});
    note_change(mem_, root_, 0, false);
    return true;
  }

  bool extend(uint64_t sequence, uint64_t token, uint64_t now, uint64_t lease) {
    const Addr at = held(sequence, token);
    if (at == 0) return false;
    mem_.store(at + kUntil, until(now, lease));
    add_lease(until(now, lease), sequence);
    note_change(mem_, root_, 0, false);
    return true;
  }

  // Items that come back after `attempts` takes go to the dead ones instead. 0: never.
  void limit_attempts(uint64_t attempts) {
    set(kLimit, attempts);
    note_change(mem_, root_, 0, false);
  }

  // The item that died first leaves the queue; its id counts as acknowledged. Items die when they are given back, and
  // when their last lease has ended at the next take of any kind.
  bool take_dead(uint64_t now, Taken& out) {
    if (get(kDead) == 0 && !some_lease_ended(now, true)) return false;
    while (get(kDead) == 0) end_leases(now);
    out = dead_at(get(kDead));
    remember(mem_.load(get(kDead) + kDeadItem));
    release_dead();
    note_change(mem_, root_, 0, true);
    return true;
  }

  // ---- reading -----------------------------------------------------------------------------------------------------
  uint64_t size() const { return get(Root::size); }  // items not acknowledged, dead ones not counted
  uint64_t leased() const { return get(kLeased); }   // of them, those held, also by leases that have ended
  uint64_t ready() const { return size() - leased(); }
  uint64_t dead() const { return get(kDeadCount); }

  // The value `index` places behind the first ready item.
  bool front(uint64_t index, std::string& value, uint64_t& lsn) const {
    const uint64_t back = returned_.size();
    uint64_t s = get(kFresh) + index - back;
    if (index < back) {
      auto pairs = returned_.all([](const auto&) { return true; });
      std::sort(pairs.begin(), pairs.end());
      s = pairs[index].number;
    } else if (s >= get(kNext)) {
      return false;
    }
    const Addr at = slot(s);
    mem_.touch(at, kSlotSize);
    const Addr item = mem_.load(at + kItem);
    mem_.touch(item, kItemGuess);
    read_value(mem_, item, value, lsn);
    return true;
  }

  // Numbers and values of items not acknowledged, leased or not, from `start` on.
  void peek(uint64_t start, size_t limit, std::vector<std::pair<uint64_t, std::string>>& out) const {
    uint64_t lsn = 0;
    for (uint64_t s = occupied(std::max(start, get(kHead))), next = get(kNext); s < next && out.size() < limit;
         s = occupied(s + 1)) {
      const Addr item = mem_.load(slot(s) + kItem);
      mem_.touch(item, kItemGuess);
      out.emplace_back(s, std::string());
      read_value(mem_, item, out.back().second, lsn);
    }
  }

  // Dead items, those that died first at the front; their tokens are 0.
  void scan_dead(size_t limit, std::vector<Taken>& out) const {
    uint64_t left = dead();
    for (Addr node = get(kDead); node != 0 && limit > 0; node = mem_.load(node), --limit) {
      if (left-- == 0) throw Torn{};
      out.push_back(dead_at(node));
    }
  }

 private:
  // A slot: its item (0: done), the end of its lease (0: ready), its token, how often it was taken.
  static constexpr Addr kItem = 0, kUntil = 8, kToken = 16, kTries = 24, kSlotSize = 32;
  static constexpr uint64_t kSlots = 128, kSegmentSize = kSlots * kSlotSize;
  static constexpr size_t kAtOnce = 65536;  // leases that one take may end
  // A dead item: the next one, its item, its number, how often it was taken.
  static constexpr Addr kDeadItem = 8, kDeadSequence = 16, kDeadTries = 24, kDeadSize = 32;
  // kHead: nothing before it is in the queue. kNext: the next number. kFresh: nothing from it on was ever taken.
  static constexpr Addr kHead = Root::own, kNext = kHead + 8, kFresh = kNext + 8, kLeased = kFresh + 8,
                        kLimit = kLeased + 8, kDead = kLimit + 8, kLastDead = kDead + 8, kDeadCount = kLastDead + 8,
                        kSegments = kDeadCount + 8, kLeases = kSegments + Segments<Mem>::kWords,
                        kReturned = kLeases + MinHeap<Mem>::kWords, kIds = kReturned + MinHeap<Mem>::kWords,
                        kRootSize = kIds + RecentIds<Mem>::kWords;

  uint64_t get(Addr field) const { return mem_.load(root_ + field); }
  void set(Addr field, uint64_t value) { mem_.store(root_ + field, value); }

  // ---- where an item lies ----------------------------------------------------------------------------------------
  static uint64_t segment_of(uint64_t sequence) { return (sequence - 1) / kSlots; }
  uint64_t end_segment() const { return (get(kNext) - 1 + kSlots - 1) / kSlots; }
  // 0 if all of its segment is done.
  Addr slot(uint64_t sequence) const {
    const Addr segment = segments_[segment_of(sequence)];
    return segment == 0 ? 0 : segment + (sequence - 1) % kSlots * kSlotSize;
  }

  // The first number from `s` on that has an item, or kNext.
  uint64_t occupied(uint64_t s) const {
    const uint64_t next = get(kNext);
    if (s < next && segment_of(next) - segment_of(s) > segments_.capacity()) throw Torn{};
    while (s < next) {
      const Addr at = slot(s);
      if (at == 0) {
        s = (segment_of(s) + 1) * kSlots + 1;
        continue;
      }
      mem_.touch(at, kSlotSize);
      if (mem_.load(at + kItem) != 0) return s;
      ++s;
    }
    return next;
  }

  // The slot of an item that is held under this token, or 0.
  Addr held(uint64_t s, uint64_t token) const {
    if (s < get(kHead) || s >= get(kNext)) return 0;
    const Addr at = slot(s);
    if (at == 0) return 0;
    mem_.touch(at, kSlotSize);
    return mem_.load(at + kItem) != 0 && mem_.load(at + kUntil) != 0 && mem_.load(at + kToken) == token ? at : 0;
  }

  // ---- leases ------------------------------------------------------------------------------------------------------
  static uint64_t until(uint64_t now, uint64_t lease) { return lease > ~now ? ~uint64_t{0} : now + lease; }

  bool counts(const typename MinHeap<Mem>::Pair& lease) const {
    if (lease.number < get(kHead)) return false;
    const Addr at = slot(lease.number);
    return at != 0 && mem_.load(at + kItem) != 0 && mem_.load(at + kUntil) == lease.rank;
  }
  bool worn_out(Addr at) const { return get(kLimit) != 0 && mem_.load(at + kTries) >= get(kLimit); }

  // The heap of leases is cleaned when most of it has no meaning any more, so that acknowledging need not search in it.
  void add_lease(uint64_t end, uint64_t s) {
    if (leases_.size() >= 2 * get(kLeased) + 64) leases_.keep([&](const auto& lease) { return counts(lease); });
    leases_.push({end, s});
  }

  // Whether a lease has ended whose item is ready by that, or dead if `worn`.
  bool some_lease_ended(uint64_t now, bool worn) const {
    return get(kLeased) > 0 &&
           leases_.any(now, [&](const auto& lease) { return counts(lease) && worn_out(slot(lease.number)) == worn; });
  }

  // At most kAtOnce, so that a take never changes more than the undo journal holds, whatever ended meanwhile.
  void end_leases(uint64_t now) {
    std::vector<typename MinHeap<Mem>::Pair> back;
    for (const auto& lease : leases_.pop_up_to(now, kAtOnce))
      if (counts(lease) && let_go(lease.number, slot(lease.number))) back.push_back({lease.number, lease.number});
    returned_.push_all(back);
  }

  // Nobody holds the item any more. Whether it is ready: the caller has to put it among the returned ones.
  bool let_go(uint64_t s, Addr at) {
    set(kLeased, get(kLeased) - 1);
    if (worn_out(at)) {
      bury(s, at);
      return false;
    }
    mem_.store(at + kUntil, 0);
    return true;
  }

  // ---- ends of items -----------------------------------------------------------------------------------------------
  void finish(uint64_t s, Addr at, Addr item) {
    remember(item);
    release_item(mem_, item);
    vacate(s, at);
    note_change(mem_, root_, -1, true);
  }

  void bury(uint64_t s, Addr at) {
    const uint64_t words[] = {0, mem_.load(at + kItem), s, mem_.load(at + kTries)};
    const Addr node = mem_.allocate(kDeadSize);
    mem_.fill(node, words, kDeadSize);
    if (const Addr last = get(kLastDead); last != 0) mem_.store(last, node);
    else set(kDead, node);
    set(kLastDead, node);
    set(kDeadCount, get(kDeadCount) + 1);
    vacate(s, at);
    note_change(mem_, root_, -1, true);
  }

  // Segments go when their last item does, wherever they lie: one item that is held long does not keep all behind it.
  void vacate(uint64_t s, Addr at) {
    mem_.store(at + kItem, 0);
    if (segments_.count_up(segment_of(s)) == kSlots) segments_.remove(segment_of(s));
    if (s == get(kHead)) set(kHead, occupied(s + 1));
  }

  // Of the one that died first.
  void release_dead() {
    const Addr node = get(kDead);
    release_item(mem_, mem_.load(node + kDeadItem));
    set(kDead, mem_.load(node));
    if (get(kDead) == 0) set(kLastDead, 0);
    set(kDeadCount, get(kDeadCount) - 1);
    mem_.release(node, kDeadSize);
  }

  void remember(Addr item) {
    mem_.touch(item, kItemGuess);
    if (item_at(mem_, item).key_size != 0) ids_.retire(key_of(mem_, item));
  }

  Taken dead_at(Addr node) const {
    mem_.touch(node, kDeadSize);
    const Addr item = mem_.load(node + kDeadItem);
    mem_.touch(item, kItemGuess);
    Taken out;
    uint64_t lsn = 0;
    out.sequence = mem_.load(node + kDeadSequence);
    out.attempts = mem_.load(node + kDeadTries);
    read_value(mem_, item, out.value, lsn);
    return out;
  }

  Mem& mem_;
  Addr root_;
  Segments<Mem> segments_;
  MinHeap<Mem> leases_, returned_;  // pairs of the end of a lease and a number; of a number and itself
  RecentIds<Mem> ids_;
};

}  // namespace statepool::store
