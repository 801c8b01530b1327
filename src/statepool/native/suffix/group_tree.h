// The texts of one group and what followed where: drafts from the places that share the longest context with a text.
//
// The suffix tree is not built. Two hash chains lead from the last tokens of a text to the places where the same tokens
// stood before; the places that agree longest are the leaves below the node where a tree would end its match, and the
// tokens behind them, counted, are its children. A cursor per text keeps these places, so that a token that was drafted
// right costs one comparison for each of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "draft.h"

namespace statepool::suffix {

class GroupTree {
 public:
  // depth: longest context compared; places: most places kept; budget: bytes, above which the oldest text goes.
  GroupTree(int depth, int places, size_t budget);

  // Adds to a text, which begins with its first tokens.
  void append(int32_t text, const int32_t* tokens, size_t count);
  void remove(int32_t text);
  size_t length(int32_t text) const;
  size_t bytes() const;
  size_t texts() const { return slots_.size(); }

  // Up to `budget` tokens that may follow the text, on at most `paths` paths, each reached with at least `least`.
  Draft draft(int32_t text, int budget, int paths, float least);

 private:
  static constexpr int kLong = 4, kShort = 2;
  static constexpr uint32_t kNone = ~0u;

  struct Place {
    uint32_t slot, at;
  };
  struct Text {
    int32_t name = -1;
    bool used = false;
    std::vector<int32_t> tokens;
    // The place before with the same last kLong, or kShort, tokens.
    std::vector<uint32_t> far, near;
    // Cursor: places that agreed with the last `matched` tokens when the text had `seen` of them.
    std::vector<Place> cursor;
    size_t seen = 0, found = 0;
    int matched = 0;
  };
  struct Table {
    std::vector<uint32_t> heads;
    int order;
  };

  uint32_t pack(uint32_t slot, uint32_t at) const { return slot << kBits | at; }
  static constexpr int kBits = 22;
  static constexpr uint32_t kMask = (1u << kBits) - 1;

  void index(uint32_t slot, uint32_t at);
  void grow();
  void rebuild();
  void evict(uint32_t keep);
  int agree(const Text& text, uint32_t place, int most) const;
  void search(uint32_t slot);
  void follow(uint32_t slot);
  static uint32_t hash(const int32_t* last, int order);

  int depth_;
  int places_;
  size_t budget_, total_ = 0;
  std::vector<Text> texts_;
  std::vector<uint32_t> free_;
  std::unordered_map<int32_t, uint32_t> slots_;
  std::vector<uint32_t> order_;  // slots, oldest first
  std::vector<uint32_t> far_, near_;
  uint32_t cells_ = 0;

  struct Branch {
    float chance;
    int parent;
    uint32_t first, count;  // its places in the arena
  };
  struct Next {
    int32_t token;
    uint32_t count;
  };
  // Scratch of draft(), kept for its memory.
  std::vector<Place> arena_;
  std::vector<Branch> branches_;
  std::vector<uint32_t> heap_;
  std::vector<Next> nexts_;
};

}  // namespace statepool::suffix
