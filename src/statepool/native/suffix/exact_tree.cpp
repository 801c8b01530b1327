#include "exact_tree.h"

#include <algorithm>
#include <queue>

namespace statepool::suffix {

namespace {

constexpr uint32_t kNone = ~0u;

struct Item {
  float chance;
  uint32_t node;
  bool told;  // the node's token is in the draft already
  int parent;
};
struct Less {
  bool operator()(const Item& a, const Item& b) const { return a.chance < b.chance; }
};

}  // namespace

ExactTree::ExactTree(int depth) : depth_(depth), nodes_(1) {}

uint32_t ExactTree::child(uint32_t node, int32_t token) const {
  for (uint32_t each : nodes_[node].children)
    if (nodes_[each].token == token) return each;
  return kNone;
}

// Counts one more suffix in a child and moves it among its siblings.
void ExactTree::enter(uint32_t node, uint32_t child) {
  std::vector<uint32_t>& list = nodes_[node].children;
  const size_t at = size_t(std::find(list.begin(), list.end(), child) - list.begin());
  const int64_t count = nodes_[child].count++;
  if (at == 0) return;
  const int64_t before = nodes_[list[at - 1]].count;
  if (before > count + 1) return;
  // To the head of the group of its left neighbour: in front of its own group, or in front of the one it joins.
  size_t head = at - 1;
  while (head > 0 && nodes_[list[head - 1]].count == before) --head;
  std::rotate(list.begin() + long(head), list.begin() + long(at), list.begin() + long(at) + 1);
}

void ExactTree::append(int32_t text, const int32_t* tokens, size_t count) {
  std::deque<uint32_t>& ends = active_[text];
  for (size_t i = 0; i < count; ++i) {
    ends.push_back(0);
    nodes_[0].count += 1;
    if (ends.size() > size_t(depth_)) ends.pop_front();
    for (uint32_t& end : ends) {
      uint32_t next = child(end, tokens[i]);
      if (next == kNone) {
        next = uint32_t(nodes_.size());
        nodes_.push_back({1, tokens[i], {}});
        nodes_[end].children.push_back(next);
      } else {
        enter(end, next);
      }
      end = next;
    }
  }
}

bool ExactTree::inside_edge(uint32_t node) const {
  const Node& here = nodes_[node];
  return node != 0 && here.children.size() == 1 && nodes_[here.children[0]].count == here.count;
}

Draft ExactTree::path(uint32_t node, int most, float least) const {
  Draft out;
  float chance = 1.0f;
  while (int(out.tokens.size()) < most && chance >= least) {
    const Node& here = nodes_[node];
    if (here.children.empty()) break;
    const uint32_t next = here.children[0];
    if (!inside_edge(node)) {
      chance *= static_cast<float>(nodes_[next].count) / static_cast<float>(here.count);
      if (chance < least) break;
    }
    out.parents.push_back(int32_t(out.tokens.size()) - 1);
    out.tokens.push_back(nodes_[next].token);
    out.chances.push_back(chance);
    out.score += chance;
    node = next;
  }
  return out;
}

Draft ExactTree::tree(uint32_t node, int most, float least) const {
  Draft out;
  std::priority_queue<Item, std::vector<Item>, Less> queue;
  queue.push({1.0f, node, true, -1});
  while (int(out.tokens.size()) < most && !queue.empty()) {
    Item item = queue.top();
    queue.pop();
    if (item.told && inside_edge(item.node)) item = {item.chance, nodes_[item.node].children[0], false, item.parent};
    if (!item.told) {
      out.tokens.push_back(nodes_[item.node].token);
      out.parents.push_back(item.parent);
      out.chances.push_back(item.chance);
      out.score += item.chance;
      queue.push({item.chance, item.node, true, int(out.tokens.size()) - 1});
      continue;
    }
    const Node& here = nodes_[item.node];
    for (uint32_t each : here.children) {
      const float chance = item.chance * static_cast<float>(nodes_[each].count) / static_cast<float>(here.count);
      if (chance < least) break;
      queue.push({chance, each, false, item.parent});
    }
  }
  return out;
}

Draft ExactTree::speculate(const int32_t* context, size_t size, int most, float factor, float offset, float least, bool as_tree) const {
  Draft best;
  for (size_t match = 1; match < size; ++match) {
    uint32_t node = 0;
    for (size_t i = size - match; i < size && node != kNone; ++i) node = child(node, context[i]);
    if (node == kNone) break;
    const int room = std::max(std::min(most, int(float(match) * factor + offset + 1e-6)), 0);
    Draft draft = as_tree ? tree(node, room, least) : path(node, room, least);
    if (draft.score >= best.score) {
      best = std::move(draft);
      best.match = int(match);
    }
  }
  return best;
}

size_t ExactTree::bytes() const {
  size_t sum = sizeof(*this) + nodes_.capacity() * sizeof(Node);
  for (const Node& node : nodes_) sum += node.children.capacity() * sizeof(uint32_t);
  return sum;
}

}  // namespace statepool::suffix
