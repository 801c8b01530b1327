// A suffix trie with a node per token: answers as the tree of ArcticInference 0.3 does, down to the order of equals.
//
// For comparison and as a yardstick; the group tree is what drafts. A node counts the suffixes that pass through it. Where
// a path has one child of the same count, the tree it mirrors has one edge, which matters to the order of its queue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "draft.h"

namespace statepool::suffix {

class ExactTree {
 public:
  explicit ExactTree(int depth);

  void append(int32_t text, const int32_t* tokens, size_t count);

  // Matches ever longer ends of the context and keeps the draft with the largest sum of chances, the longest of equals.
  Draft speculate(const int32_t* context, size_t size, int most, float factor, float offset, float least, bool tree) const;
  size_t bytes() const;

 private:
  struct Node {
    int64_t count = 0;
    int32_t token = 0;
    std::vector<uint32_t> children;  // by falling count; equals in the order in which the mirrored lists keep them
  };

  uint32_t child(uint32_t node, int32_t token) const;
  void enter(uint32_t node, uint32_t child);
  bool inside_edge(uint32_t node) const;
  Draft path(uint32_t node, int most, float least) const;
  Draft tree(uint32_t node, int most, float least) const;

  int depth_;
  std::vector<Node> nodes_;
  std::unordered_map<int32_t, std::deque<uint32_t>> active_;  // ends of the suffixes of each text, longest first
};

}  // namespace statepool::suffix
