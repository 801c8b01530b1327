// Which nodes a search has met: one tag per node, a new epoch per search instead of clearing.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace statepool::graph {

// Shared by the threads of one query: relaxed loads and stores, so two threads may both claim a node. That costs a
// distance computed twice and nothing else.
class Visited {
 public:
  // Forget everything; room for `nodes`.
  void reset(size_t nodes) {
    if (nodes > tags_.size()) {
      std::vector<std::atomic<uint16_t>> larger(nodes + nodes / 4);
      tags_.swap(larger);
      epoch_ = 0;
    }
    if (++epoch_ == 0) {
      for (auto& tag : tags_) tag.store(0, std::memory_order_relaxed);
      epoch_ = 1;
    }
  }
  void prefetch(uint32_t node) const { __builtin_prefetch(tags_.data() + node); }
  void prefetch_to_write(uint32_t node) const { __builtin_prefetch(tags_.data() + node, 1); }
  bool seen(uint32_t node) const { return tags_[node].load(std::memory_order_relaxed) == epoch_; }
  // True for the caller that meets the node first.
  bool claim(uint32_t node) {
    if (seen(node)) return false;
    tags_[node].store(epoch_, std::memory_order_relaxed);
    return true;
  }

 private:
  std::vector<std::atomic<uint16_t>> tags_;
  uint16_t epoch_ = 0;
};

}  // namespace statepool::graph
