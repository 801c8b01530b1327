// What holds the threads of an asynchronous search together: the shared threshold, the exchange of candidates, the end.
#pragma once

#include <algorithm>

#include "query.h"

namespace statepool::graph {

// For the lanes 0 … members - 1 of a query, each run by one thread.
class Together {
 public:
  Together(Query& query, int members) : query_(query), members_(members) {}

 protected:
  // False when the search is over already: who comes then must not start.
  bool join() {
    int active = active_.load(std::memory_order_acquire);
    do {
      if (active == 0) return false;
    } while (!active_.compare_exchange_weak(active, active + 1, std::memory_order_acq_rel));
    return true;
  }
  bool over() const {
    return active_.load(std::memory_order_acquire) == 0 || query_.stop.load(std::memory_order_relaxed);
  }
  Entry bound() const { return threshold_.load(std::memory_order_relaxed); }

  // Whether the caller of this search may use fewer threads now than it would take with this one.
  bool called_back(int self) const {
    const Lease* lease = query_.request.lease;
    return lease != nullptr && self > 0 && self >= lease->threads.load();
  }
  // Go while others work on. The lane stays counted as active until somebody took its candidates over.
  void leave(Lane& lane) {
    lane.jitter.maybe();
    lane.left.store(true, std::memory_order_release);
  }

  // How a rest ended: with candidates, with the end of the search or of this thread's part in it, or called off; then it must
  // touch nothing of the search any more.
  enum class Rest { kOn, kOver, kOff };

  Rest rest(Lane& lane, int self) {
    std::atomic<uint32_t>& state = lane.mailbox.state;
    state.store(Mailbox::kWanted, std::memory_order_release);
    lane.jitter.maybe();
    active_.fetch_sub(1, std::memory_order_acq_rel);
    Patience patience;
    do {
      if (over()) return Rest::kOver;
      uint32_t full = Mailbox::kFull;
      if (state.compare_exchange_strong(full, Mailbox::kClosed, std::memory_order_acq_rel)) {
        reopen(lane, lane.mailbox);
        return Rest::kOn;
      }
      const bool back = called_back(self);
      if (!back && !(self == 0 && offered())) continue;
      uint32_t wanted = Mailbox::kWanted;
      if (!state.compare_exchange_strong(wanted, Mailbox::kClosed, std::memory_order_acq_rel)) continue;
      if (back) return Rest::kOver;
      if (take_over(lane)) return Rest::kOn;
      state.store(Mailbox::kWanted, std::memory_order_release);
    } while (patience.linger());
    return Rest::kOff;
  }

  // Hand every second open candidate to one who asked, if that makes `least`.
  void serve(Lane& lane, int self, int least) {
    for (int step = 1; step < members_; ++step) {
      Mailbox& box = query_.lane((self + step) % members_).mailbox;
      if (box.state.load(std::memory_order_relaxed) != Mailbox::kWanted) continue;
      if (called_back((self + step) % members_)) continue;
      const Entry bound = threshold_.load(std::memory_order_relaxed);
      const int first = lane.pool.next() + 1;
      if (!lane.pool.holds_open(first, bound, 2 * least - 1)) return;
      uint32_t wanted = Mailbox::kWanted;
      if (!box.state.compare_exchange_strong(wanted, Mailbox::kFilling, std::memory_order_acq_rel)) continue;
      // On behalf of the receiver, while this thread keeps the count above 0.
      active_.fetch_add(1, std::memory_order_acq_rel);
      lane.jitter.maybe();
      box.count = lane.pool.split(first, bound, box.items, Mailbox::kRoom);
      lane.board.publish(lane.pool, query_.request.width);
      box.state.store(Mailbox::kFull, std::memory_order_release);
    }
  }

  // Show the own candidates and lower the threshold to what all of them together allow: if m samples of the others are no
  // farther than x, so are m * stride of their candidates, and the own pool must have only the rest of the L.
  void share(Lane& lane, int self) {
    if (members_ == 1) return;
    const int width = query_.request.width, step = Board::stride(width);
    lane.board.publish(lane.pool, width);
    int32_t samples[kMostHeard * Board::kSamples];
    const int count = hear(self, samples);
    int32_t lower = code_of(lane.pool.at(width - 1));
    for (int m = 1; m <= count && m * step <= width; ++m) {
      const int rest = width - m * step;
      lower = std::min(lower, rest == 0 ? samples[m - 1] : std::max(samples[m - 1], code_of(lane.pool.at(rest - 1))));
    }
    lane.counts.thresholds += lower_to(lower);
  }

  // The same from the boards alone.
  void lower_from_boards() {
    const int width = query_.request.width, step = Board::stride(width), needed = (width + step - 1) / step;
    int32_t samples[kMostHeard * Board::kSamples];
    for (int first = 0; first < members_; first += kMostHeard)
      if (const int count = hear(first - 1, samples); count >= needed) lower_to(samples[needed - 1]);
  }

  Query& query_;
  const int members_;

 private:
  static constexpr int kMostHeard = 7;

  void reopen(Lane& lane, const Mailbox& box) const {
    const Entry bound = threshold_.load(std::memory_order_relaxed);
    for (int i = 0; i < box.count; ++i)
      if (box.items[i] <= bound) lane.pool.reopen(box.items[i]);
  }

  // Whether a helper left candidates, or has not taken up what it was given: whoever needed its core may have stopped it.
  bool offered() const {
    for (int i = 1; i < members_; ++i) {
      const Lane& other = query_.lane(i);
      if (other.left.load(std::memory_order_relaxed)) return true;
      if (other.mailbox.state.load(std::memory_order_relaxed) == Mailbox::kFull) return true;
    }
    return false;
  }
  // The first lane's thread does this, which never leaves. With the candidates comes their place in the count.
  bool take_over(Lane& lane) {
    for (int i = 1; i < members_; ++i) {
      Lane& other = query_.lane(i);
      if (other.left.exchange(false, std::memory_order_acq_rel)) {
        // All of them, and its board no more: nothing may count twice for the threshold.
        other.board.reset();
        for (int j = 0; j < other.pool.size(); ++j) {
          const Entry entry = other.pool.at(j);
          if (expanded(entry)) lane.pool.insert_once(entry);
          else lane.pool.reopen(entry);
        }
        return true;
      }
      uint32_t full = Mailbox::kFull;
      if (other.mailbox.state.compare_exchange_strong(full, Mailbox::kFilling, std::memory_order_acq_rel)) {
        reopen(lane, other.mailbox);
        other.mailbox.state.store(Mailbox::kWanted, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  // Samples of the members after `self`, sorted; answers how many.
  int hear(int self, int32_t* samples) const {
    const int width = query_.request.width, step = Board::stride(width), heard = std::min(members_ - 1, kMostHeard);
    int count = 0;
    for (int other = 1; other <= heard; ++other)
      for (int i = 0; i < Board::kSamples && (i + 1) * step <= width; ++i)
        samples[count++] = query_.lane((self + other + members_) % members_).board.sample(i);
    if (heard > 1) std::sort(samples, samples + count);
    return count;
  }

  bool lower_to(int32_t code) {
    const Entry wanted = static_cast<Entry>(static_cast<uint64_t>(static_cast<uint32_t>(code)) << 32 | 0xffffffffu);
    Entry bound = threshold_.load(std::memory_order_relaxed);
    while (wanted < bound)
      if (threshold_.compare_exchange_weak(bound, wanted, std::memory_order_relaxed)) return true;
    return false;
  }

  alignas(128) std::atomic<Entry> threshold_{kNoBound};
  alignas(128) std::atomic<int> active_{1};  // threads with candidates; the caller is the first
};

}  // namespace statepool::graph
