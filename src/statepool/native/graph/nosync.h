// Independent searches from different entries over one visited set, merged once at the end (baseline: ScatterSearch).
#pragma once

#include "query.h"

namespace statepool::graph {

template <class Walk>
class NoSync {
 public:
  NoSync(const Walk& walk, Query& query) : walk_(walk), query_(query) {}

  void run() {
    Crew::Team team(Crew::instance(), query_.request.threads - 1, &NoSync::work, this);
    work(this, 0);
    team.dismiss();
  }

 private:
  static void work(void* shared, int worker) {
    NoSync& self = *static_cast<NoSync*>(shared);
    Lane& lane = self.query_.lane(worker);
    enter(self.walk_, self.query_, worker, self.query_.request.threads);
      search_alone(self.walk_, self.query_, lane, std::numeric_limits<uint32_t>::max(), kNoBound);
  }

  const Walk& walk_;
  Query& query_;
};

}  // namespace statepool::graph
