// Asynchronous search (AverSearch, arXiv 2504.20461) for few threads: every thread does everything, none waits.
//
// Each thread searches from an entry of its own. What binds them is a shared threshold, the L-th best distance anyone is
// known to have: it only falls, and a candidate above it is dropped unexpanded. A thread with no candidates below it asks,
// and any thread with plenty hands half of them over. The search ends when no thread is active.
#pragma once

#include <algorithm>

#include "query.h"

namespace statepool::graph {

template <class Walk>
class Async {
 public:
  Async(const Walk& walk, Query& query) : walk_(walk), query_(query), threads_(query.request.threads) {}

  void run() {
    Crew::Team team(Crew::instance(), threads_ - 1, &Async::helper, this);
    work(0);
    team.dismiss();
  }

 private:
  static void helper(void* shared, int worker) { static_cast<Async*>(shared)->join(worker); }

  // A helper that comes when all is done must not start again.
  void join(int worker) {
    query_.lane(worker).jitter.maybe();
    int active = active_.load(std::memory_order_acquire);
    do {
      if (active == 0) return;
    } while (!active_.compare_exchange_weak(active, active + 1, std::memory_order_acq_rel));
    work(worker);
  }

  void work(int self) {
    Lane& lane = query_.lane(self);
    enter(walk_, query_, self);
    int since = 0;
    uint32_t next = kNone;
    for (;;) {
      const Entry bound = threshold_.load(std::memory_order_relaxed);
      const uint32_t node = next != kNone ? next : pick(walk_, lane, bound);
      if (node == kNone) {
        share(lane, self);
        if (!rest(lane)) return;
        continue;
      }
      if (query_.late()) return;
      next = Walk::kAhead ? pick(walk_, lane, bound) : kNone;
      visit(walk_, lane, node, bound);
      if (++since == query_.request.local_hops) {
        since = 0;
        share(lane, self);
      }
      serve(lane, self);
      lane.jitter.maybe();
    }
  }

  // Without candidates: false when the search is over, true when somebody sent some.
  bool rest(Lane& lane) {
    lane.mailbox.state.store(Mailbox::kWanted, std::memory_order_release);
    lane.jitter.maybe();
    active_.fetch_sub(1, std::memory_order_acq_rel);
    Patience patience;
    while (lane.mailbox.state.load(std::memory_order_acquire) != Mailbox::kFull) {
      if (active_.load(std::memory_order_acquire) == 0 || query_.stop.load(std::memory_order_relaxed)) return false;
      patience.wait();
    }
    const Entry bound = threshold_.load(std::memory_order_relaxed);
    for (int i = 0; i < lane.mailbox.count; ++i)
      if (lane.mailbox.items[i] <= bound) lane.pool.reopen(lane.mailbox.items[i]);
    lane.mailbox.state.store(Mailbox::kClosed, std::memory_order_relaxed);
    return true;
  }

  // Hand every second open candidate to one who asked.
  void serve(Lane& lane, int self) {
    for (int step = 1; step < threads_; ++step) {
      Mailbox& box = query_.lane((self + step) % threads_).mailbox;
      if (box.state.load(std::memory_order_relaxed) != Mailbox::kWanted) continue;
      const Entry bound = threshold_.load(std::memory_order_relaxed);
      int second = lane.pool.next() + 1;
      while (second < lane.pool.size() && expanded(lane.pool.at(second))) ++second;
      if (second >= lane.pool.size() || lane.pool.at(second) > bound) return;
      uint32_t wanted = Mailbox::kWanted;
      if (!box.state.compare_exchange_strong(wanted, Mailbox::kFilling, std::memory_order_acq_rel)) continue;
      // On behalf of the receiver, while this thread keeps the count above 0.
      active_.fetch_add(1, std::memory_order_acq_rel);
      lane.jitter.maybe();
      box.count = lane.pool.split(second, bound, box.items, Mailbox::kRoom);
      lane.board.publish(lane.pool, query_.request.width);
      box.state.store(Mailbox::kFull, std::memory_order_release);
    }
  }

  // Show the own candidates and lower the threshold to what all of them together allow: if m samples of the others are no
  // farther than x, so are m * stride of their candidates, and the own pool must have only the rest of the L.
  void share(Lane& lane, int self) {
    constexpr int kMostHeard = 7;
    const int width = query_.request.width, step = Board::stride(width), heard = std::min(threads_ - 1, kMostHeard);
    lane.board.publish(lane.pool, width);
    int32_t samples[kMostHeard * Board::kSamples];
    int count = 0;
    for (int other = 1; other <= heard; ++other)
      for (int i = 0; i < Board::kSamples && (i + 1) * step <= width; ++i)
        samples[count++] = query_.lane((self + other) % threads_).board.sample(i);
    if (heard > 1) std::sort(samples, samples + count);
    int32_t lower = code_of(lane.pool.at(width - 1));
    for (int m = 1; m <= count && m * step <= width; ++m) {
      const int rest = width - m * step;
      const int32_t needed = rest == 0 ? samples[m - 1] : std::max(samples[m - 1], code_of(lane.pool.at(rest - 1)));
      lower = std::min(lower, needed);
    }
    const Entry wanted = static_cast<Entry>(static_cast<uint64_t>(static_cast<uint32_t>(lower)) << 32 | 0xffffffffu);
    Entry bound = threshold_.load(std::memory_order_relaxed);
    while (wanted < bound)
      if (threshold_.compare_exchange_weak(bound, wanted, std::memory_order_relaxed)) {
        ++lane.counts.thresholds;
        break;
      }
  }

  const Walk& walk_;
  Query& query_;
  const int threads_;
  alignas(128) std::atomic<Entry> threshold_{kNoBound};
  alignas(128) std::atomic<int> active_{1};
};

}  // namespace statepool::graph
