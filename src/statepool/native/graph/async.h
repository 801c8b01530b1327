// Asynchronous search (AverSearch, arXiv 2504.20461) for few threads: every thread does everything, none waits.
//
// Each thread searches from entries of its own. What binds them is a shared threshold, the L-th best distance anyone is
// known to have: it only falls, and a candidate above it is dropped unexpanded. A thread with no candidates below it asks,
// and any thread with plenty hands half of them over. A helper whose core another query needs leaves: what it has open is
// taken over by the first thread, once that runs out. The search ends when no thread is active.
#pragma once

#include "together.h"

namespace statepool::graph {

template <class Walk>
class Async : Together {
 public:
  Async(const Walk& walk, Query& query) : Together(query, query.request.threads), walk_(walk) {}

  void run() {
    Crew::Team team(Crew::instance(), members_ - 1, &Async::helper, this);
    work(0);
    team.dismiss();
    if (Lease* lease = query_.request.lease; lease != nullptr && lease->helpers.exchange(0) > 0) Crew::instance().tell_done();
  }

 private:
  static void helper(void* shared, int worker) {
    Async& self = *static_cast<Async*>(shared);
    self.query_.lane(worker).jitter.maybe();
    Lease* lease = self.query_.request.lease;
    if (lease != nullptr) lease->helpers.fetch_add(1);  // before the look at whether it is called back
    const bool off = !self.called_back(worker) && self.join() && self.work(worker) == Rest::kOff;
    if (lease != nullptr && !off) lease->helpers.fetch_sub(1);
  }

  Rest work(int self) {
    Lane& lane = query_.lane(self);
    enter(walk_, query_, self, members_);
    int since = 0;
    uint32_t next = kNone;
    for (;;) {
      const Entry limit = bound();
      const bool away = called_back(self);
      if (away && next == kNone) {
        leave(lane);
        return Rest::kOver;
      }
      const uint32_t node = next != kNone ? next : pick(walk_, lane, limit);
      if (node == kNone) {
        share(lane, self);
        if (const Rest how = rest(lane, self); how != Rest::kOn) return how;
        continue;
      }
      if (query_.late()) return Rest::kOver;
      next = Walk::kAhead && !away ? pick(walk_, lane, limit) : kNone;
      visit(walk_, lane, node, limit);
      if (++since == query_.request.local_hops) {
        since = 0;
        share(lane, self);
      }
      serve(lane, self, Walk::kLeastGift);
      lane.jitter.maybe();
    }
  }

  const Walk& walk_;
};

}  // namespace statepool::graph
