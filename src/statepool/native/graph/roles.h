// Asynchronous search by roles (AverSearch, arXiv 2504.20461) for many threads.
//
// The threads form groups of about eight. A group's maintainer owns a slice of the candidates: it takes finished distances
// from the group's desk, picks what to expand, and leaves the unmet neighbours there as work. Calculators turn ids into
// distances and wait for nobody. The balancer keeps the shared threshold at the L-th best of all slices. Candidates move
// to groups that ran out. The caller is a maintainer, and a maintainer whose calculators have not come computes itself.
#pragma once

#include <memory>
#include <vector>

#include "desk.h"
#include "together.h"

namespace statepool::graph {

class Roles : Together {
 public:
  Roles(const Walk& walk, Query& query) : Together(query, groups_of(query.request.threads)), walk_(walk) {
    for (int group = 0; group < members_; ++group) desks_.push_back(std::make_unique<Desk>());
  }

  void run() {
    Crew::Team team(Crew::instance(), query_.request.threads - 1, &Roles::helper, this);
    maintain(0);
    team.dismiss();
  }

 private:
  static constexpr int kLow = 3;        // distances that wait per calculator: enough to be busy, few enough to be worth it
  static constexpr int kClaim = 4;      // distances a calculator takes at a time
  static constexpr int kGroup = 8;
  static constexpr int kBalancer = 16;  // threads from which one does nothing but balance

  static int groups_of(int threads) { return std::max(1, threads / kGroup); }

  static void helper(void* shared, int worker) {
    Roles& self = *static_cast<Roles*>(shared);
    self.query_.lane(worker).jitter.maybe();
    const int threads = self.query_.request.threads;
    if (worker < self.members_) {
      if (self.join()) self.maintain(worker);
    } else if (threads >= kBalancer && worker == threads - 1) {
      self.balance();
    } else {
      self.calculate(worker);
    }
  }

  // Measure for the group's desk; the counts go to the lane of the thread that did it.
  int measure(int group, Lane& lane) {
    const int done = desks_[static_cast<size_t>(group)]->serve(kClaim, [&](Hits& hits) { walk_.measure(hits, 0, hits.count); });
    lane.counts.distances += static_cast<uint64_t>(done);
    return done;
  }

  void calculate(int worker) {
    Lane& lane = query_.lane(worker);
    Patience patience;
    while (!over()) {
      if (measure(worker % members_, lane) > 0) patience.reset();
      else patience.wait();
      lane.jitter.maybe();
    }
  }

  void balance() {
    Patience patience;
    while (!over()) {
      lower_from_boards();
      patience.wait();
    }
  }

  void maintain(int group) {
    Lane& lane = query_.lane(group);
    Desk& desk = *desks_[static_cast<size_t>(group)];
    enter(walk_, query_, group, members_);
    const int calculators = std::max(1, query_.request.threads / members_ - 1);
    int since = 0;
    Patience patience;
    for (;;) {
      const Entry limit = bound();
      if (desk.collect(lane.hits) > 0) {
        keep(lane, limit);
        patience.reset();
      }
      if (query_.late()) return;
      if (desk.waiting() < kLow * calculators && desk.room() >= walk_.segment.degree) {
        if (const uint32_t node = pick(walk_, lane, limit); node != kNone) {
          walk_.meet(node, lane.hits);
          desk.ask(lane.hits.ids, lane.hits.count);
          ++lane.counts.hops;
          if (++since == query_.request.local_hops) {
            since = 0;
            share(lane, group);
          }
          serve(lane, group, Walk::kLeastGift);
          lane.jitter.maybe();
          continue;
        }
      }
      if (desk.quiet()) {
        share(lane, group);
        if (rest(lane, group) != Rest::kOn) return;
      } else if (measure(group, lane) == 0) {
        patience.wait();
      }
    }
  }

  const Walk& walk_;
  std::vector<std::unique_ptr<Desk>> desks_;
};

}  // namespace statepool::graph
