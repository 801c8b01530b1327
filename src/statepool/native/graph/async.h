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
      box.count = 0;
      bool give = true;
      for (int i = second; i < lane.pool.size() && box.count < Mailbox::kRoom; ++i) {
        const Entry entry = lane.pool.at(i);
        if (expanded(entry)) continue;
        if (entry > bound) break;
        if (give) {
          box.items[box.count++] = entry;
          lane.pool.mark(i);
        }
        give = !give;
      }
      box.state.store(Mailbox::kFull, std::memory_order_release);
    }
  }

  // Learn what one of the others knows, tell what is known now, lower the threshold.
  void share(Lane& lane, int self) {
    const int width = query_.request.width;
    merge(lane, lane.pool.begin(), lane.pool.size(), width);
    lane.turn = lane.turn % (threads_ - 1) + 1;
    const int count = query_.lane((self + lane.turn) % threads_).board.read(lane.heard.data());
    merge(lane, lane.heard.data(), count, width);
    lane.board.publish(lane.known.data(), lane.known_count);
    if (lane.known_count < width) return;
    const Entry lower = lane.known[static_cast<size_t>(width) - 1];
    Entry bound = threshold_.load(std::memory_order_relaxed);
    while (lower < bound)
      if (threshold_.compare_exchange_weak(bound, lower, std::memory_order_relaxed)) {
        ++lane.counts.thresholds;
        break;
      }
  }

  // known = the best `width` of known and `entries`, an entry once. Both are sorted.
  static void merge(Lane& lane, const Entry* entries, int count, int width) {
    const Entry* known = lane.known.data();
    Entry* out = lane.merged.data();
    int a = 0, b = 0, made = 0;
    while (made < width && a < lane.known_count && b < count) {
      const Entry mine = known[a], other = entries[b] & ~Entry{1};
      out[made++] = std::min(mine, other);
      a += mine <= other;
      b += other <= mine;
    }
    for (; made < width && a < lane.known_count; ++a) out[made++] = known[a];
    for (; made < width && b < count; ++b) out[made++] = entries[b] & ~Entry{1};
    lane.known.swap(lane.merged);
    lane.known_count = made;
  }

  const Walk& walk_;
  Query& query_;
  const int threads_;
  alignas(128) std::atomic<Entry> threshold_{kNoBound};
  alignas(128) std::atomic<int> active_{1};
};

}  // namespace statepool::graph
