#include "group_tree.h"

#include <algorithm>
#include <stdexcept>

namespace statepool::suffix {

namespace {

constexpr uint32_t kFirstCells = 1024;
constexpr size_t kRefresh = 16;  // tokens after which a cursor looks for places that others have added since

template <class Branches>
struct Less {
  const Branches* all;
  bool operator()(uint32_t a, uint32_t b) const {
    const float x = (*all)[a].chance, y = (*all)[b].chance;
    return x != y ? x < y : a > b;  // of equals the first found
  }
};

}  // namespace

GroupTree::GroupTree(int depth, int places, size_t budget) : depth_(depth), places_(places), budget_(budget), cells_(kFirstCells) {
  far_.assign(cells_, kNone);
  near_.assign(cells_, kNone);
}

uint32_t GroupTree::hash(const int32_t* last, int order) {
  uint64_t h = 0x9E3779B97F4A7C15ull;
  for (int i = 0; i < order; ++i) h = (h ^ uint32_t(last[-i])) * 0xD6E8FEB86659FD93ull;
  return uint32_t(h >> 32);
}

void GroupTree::append(int32_t name, const int32_t* tokens, size_t count) {
  auto found = slots_.find(name);
  uint32_t slot;
  if (found == slots_.end()) {
    if (free_.empty()) {
      if (texts_.size() >= (1u << (32 - kBits)) - 1) throw std::length_error("a group holds at most 1023 texts");
      free_.push_back(uint32_t(texts_.size()));
      texts_.emplace_back();
    }
    slot = free_.back();
    free_.pop_back();
    texts_[slot] = Text();
    texts_[slot].name = name;
    texts_[slot].used = true;
    slots_.emplace(name, slot);
    order_.push_back(slot);
  } else {
    slot = found->second;
  }
  Text& text = texts_[slot];
  if (text.tokens.size() + count > kMask) throw std::length_error("a text holds at most 4194303 tokens");
  for (size_t i = 0; i < count; ++i) {
    text.tokens.push_back(tokens[i]);
    text.far.push_back(kNone);
    text.near.push_back(kNone);
    ++total_;
    if (total_ > cells_) grow();
    index(slot, uint32_t(text.tokens.size()));
  }
  if (bytes() > budget_) evict(slot);
}

// Enters the place behind the first `at` tokens of a text into both chains.
void GroupTree::index(uint32_t slot, uint32_t at) {
  Text& text = texts_[slot];
  const int32_t* last = text.tokens.data() + at - 1;
  if (at >= kLong) {
    uint32_t& head = far_[hash(last, kLong) & (cells_ - 1)];
    text.far[at - 1] = head;
    head = pack(slot, at);
  }
  if (at >= kShort) {
    uint32_t& head = near_[hash(last, kShort) & (cells_ - 1)];
    text.near[at - 1] = head;
    head = pack(slot, at);
  }
}

void GroupTree::grow() {
  cells_ *= 2;
  rebuild();
}

void GroupTree::rebuild() {
  far_.assign(cells_, kNone);
  near_.assign(cells_, kNone);
  for (uint32_t slot : order_)
    for (uint32_t at = 1; at <= texts_[slot].tokens.size(); ++at) index(slot, at);
}

void GroupTree::remove(int32_t name) {
  auto found = slots_.find(name);
  if (found == slots_.end()) return;
  const uint32_t slot = found->second;
  total_ -= texts_[slot].tokens.size();
  slots_.erase(found);
  texts_[slot] = Text();
  free_.push_back(slot);
  order_.erase(std::find(order_.begin(), order_.end(), slot));
  for (Text& text : texts_) {
    text.cursor.clear();
    text.matched = 0;
    text.found = 0;
  }
  rebuild();
}

void GroupTree::evict(uint32_t keep) {
  while (bytes() > budget_ && order_.size() > 1) remove(texts_[order_.front() == keep ? order_[1] : order_.front()].name);
}

size_t GroupTree::length(int32_t name) const {
  auto found = slots_.find(name);
  return found == slots_.end() ? 0 : texts_[found->second].tokens.size();
}

size_t GroupTree::bytes() const {
  size_t sum = sizeof(*this) + 4 * (far_.capacity() + near_.capacity());
  for (uint32_t slot : order_) {
    const Text& text = texts_[slot];
    sum += sizeof(Text) + 4 * (text.tokens.capacity() + text.far.capacity() + text.near.capacity());
    sum += sizeof(Place) * text.cursor.capacity();
  }
  return sum;
}

int GroupTree::agree(const Text& text, uint32_t place, int most) const {
  const Text& other = texts_[place >> kBits];
  const uint32_t at = place & kMask;
  if (!other.used || at >= other.tokens.size()) return 0;  // nothing follows there
  const int32_t *a = text.tokens.data() + text.tokens.size(), *b = other.tokens.data() + at;
  most = std::min<int>(most, int(std::min<size_t>(text.tokens.size(), at)));
  int n = 0;
  while (n < most && a[-1 - n] == b[-1 - n]) ++n;
  return n;
}

// Looks for the places that agree longest with the end of a text.
void GroupTree::search(uint32_t slot) {
  Text& text = texts_[slot];
  text.cursor.clear();
  text.matched = 0;
  const uint32_t length = uint32_t(text.tokens.size());
  text.seen = text.found = length;
  for (int order : {kLong, kShort}) {
    if (length < uint32_t(order)) continue;
    const bool far = order == kLong;
    uint32_t place = (far ? far_ : near_)[hash(text.tokens.data() + length - 1, order) & (cells_ - 1)];
    for (int left = 4 * places_; place != kNone && left > 0; --left) {
      const int n = agree(text, place, depth_);
      if (n >= order) {
        if (n > text.matched) {
          text.cursor.clear();
          text.matched = n;
        }
        if (n == text.matched && text.cursor.size() < size_t(places_)) text.cursor.push_back({place >> kBits, place & kMask});
        if (text.matched == depth_ && text.cursor.size() == size_t(places_)) return;  // nothing agrees longer
      }
      const Text& other = texts_[place >> kBits];
      place = (far ? other.far : other.near)[(place & kMask) - 1];
    }
    if (text.matched) return;
  }
}

// Brings the cursor behind the tokens that came since the last draft.
void GroupTree::follow(uint32_t slot) {
  Text& text = texts_[slot];
  const size_t length = text.tokens.size();
  if (text.matched == 0 || text.cursor.empty() || length - text.found >= kRefresh) return search(slot);
  for (; text.seen < length && !text.cursor.empty(); ++text.seen) {
    const int32_t token = text.tokens[text.seen];
    size_t kept = 0;
    for (Place place : text.cursor) {
      const Text& other = texts_[place.slot];
      if (place.at < other.tokens.size() && other.tokens[place.at] == token) text.cursor[kept++] = {place.slot, place.at + 1};
    }
    text.cursor.resize(kept);
    text.matched = std::min(text.matched + 1, depth_);
  }
  size_t kept = 0;
  for (Place place : text.cursor)
    if (place.at < texts_[place.slot].tokens.size()) text.cursor[kept++] = place;
  text.cursor.resize(kept);
  if (text.cursor.empty()) search(slot);
}

Draft GroupTree::draft(int32_t name, int budget, int paths, float least) {
  Draft out;
  auto known = slots_.find(name);
  if (known == slots_.end() || budget <= 0) return out;
  const uint32_t slot = known->second;
  follow(slot);
  Text& text = texts_[slot];
  out.match = text.matched;
  if (text.cursor.empty()) return out;
  // Branches of the draft, by falling chance; each holds the places that agree with all of its tokens.
  auto &arena = arena_;
  auto &branches = branches_;
  auto &heap = heap_;
  auto &nexts = nexts_;
  arena.assign(text.cursor.begin(), text.cursor.end());
  branches.assign(1, {1.0f, -1, 0, uint32_t(arena.size())});
  heap.assign(1, 0);
  int open = 1;
  out.tokens.reserve(size_t(budget));
  out.parents.reserve(size_t(budget));
  out.chances.reserve(size_t(budget));
  while (!heap.empty() && int(out.tokens.size()) < budget) {
    std::pop_heap(heap.begin(), heap.end(), Less<std::vector<Branch>>{&branches});
    const Branch branch = branches[heap.back()];
    heap.pop_back();
    --open;
    nexts.clear();
    uint32_t live = 0;
    for (uint32_t i = 0; i < branch.count; ++i) {
      const Place place = arena[branch.first + i];
      const Text& other = texts_[place.slot];
      if (place.at >= other.tokens.size()) continue;
      ++live;
      const int32_t token = other.tokens[place.at];
      auto same = std::find_if(nexts.begin(), nexts.end(), [&](const Next& next) { return next.token == token; });
      if (same == nexts.end()) nexts.push_back({token, 1});
      else ++same->count;
    }
    if (nexts.size() > 1) std::stable_sort(nexts.begin(), nexts.end(), [](const Next& a, const Next& b) { return a.count > b.count; });
    for (const Next& next : nexts) {
      const float chance = branch.chance * float(next.count) / float(live);
      if (chance < least || open >= paths || int(out.tokens.size()) >= budget) break;
      const int parent = int(out.tokens.size());
      out.tokens.push_back(next.token);
      out.parents.push_back(branch.parent);
      out.chances.push_back(chance);
      out.score += chance;
      uint32_t first = uint32_t(arena.size());
      if (next.count == branch.count) {  // all go on alike: they move in place
        first = branch.first;
        for (uint32_t i = 0; i < branch.count; ++i) ++arena[first + i].at;
        branches.push_back({chance, parent, first, branch.count});
        heap.push_back(uint32_t(branches.size() - 1));
        std::push_heap(heap.begin(), heap.end(), Less<std::vector<Branch>>{&branches});
        ++open;
        break;
      }
      for (uint32_t i = 0; i < branch.count; ++i) {
        const Place place = arena[branch.first + i];
        const Text& other = texts_[place.slot];
        if (place.at < other.tokens.size() && other.tokens[place.at] == next.token) arena.push_back({place.slot, place.at + 1});
      }
      branches.push_back({chance, parent, first, uint32_t(arena.size()) - first});
      heap.push_back(uint32_t(branches.size() - 1));
      std::push_heap(heap.begin(), heap.end(), Less<std::vector<Branch>>{&branches});
      ++open;
    }
  }
  return out;
}

}  // namespace statepool::suffix
