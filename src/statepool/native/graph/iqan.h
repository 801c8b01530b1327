// Path-parallel search with a join every few hops (baseline: iQAN, Peng et al., PPoPP 2023).
//
// After one sequential expansion, rounds: the master deals its open candidates round-robin to the workers, keeping its own
// queue; each worker searches alone for at most X hops, pruned by the master's last distance; all queues are merged.
#pragma once

#include <algorithm>

#include "query.h"
#include "rounds.h"

namespace statepool::graph {

class Iqan {
 public:
  Iqan(const Walk& walk, Query& query)
      : walk_(walk), query_(query), rounds_(query.request.threads, &Iqan::part, this) {}

  void run() {
    Lane& master = query_.lane(0);
    enter(walk_, query_, 0, 1);
    search_alone(walk_, query_, master, 1, kNoBound);
    while (master.pool.next() < master.pool.size() && !query_.late()) {
      parts_ = rounds_.parts();
      deal(master);
      bound_ = master.pool.bound();
      rounds_.run();
      for (int worker = 1; worker < parts_; ++worker) {
        const Pool& pool = query_.lane(worker).pool;
        for (int i = 0; i < pool.size(); ++i) master.pool.reopen(pool.at(i));
      }
    }
  }

 private:
  // Open candidates go to workers 0, 1, 2, …; what another worker got is closed for the master.
  void deal(Lane& master) {
    for (int worker = 1; worker < parts_; ++worker) query_.lane(worker).begin(query_.request.width, query_.request.kept);
    int turn = 0;
    for (int i = master.pool.next(); i < master.pool.size(); ++i) {
      if (expanded(master.pool.at(i))) continue;
      const int worker = turn++ % parts_;
      if (worker == 0) continue;
      query_.lane(worker).pool.insert(master.pool.at(i));
      master.pool.mark(i);
    }
  }

  static void part(void* shared, int part, int) {
    Iqan& self = *static_cast<Iqan*>(shared);
    if (part >= self.parts_) return;  // came between the dealing and the round
    Lane& lane = self.query_.lane(part);
    search_alone(self.walk_, self.query_, lane, static_cast<uint64_t>(self.query_.request.local_hops), self.bound_);
  }

  const Walk& walk_;
  Query& query_;
  int parts_ = 1;
  Entry bound_ = 0;
  Rounds rounds_;
};

}  // namespace statepool::graph
