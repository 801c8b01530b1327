// Skip list: towers of links over the entries in order, their heights drawn from the hash of the key, so that a replay
// builds the same towers. A link holds the first 16 bytes of the key it leads to: a search reads the nodes that it goes
// to, not those it stops before.
#pragma once

#include <array>
#include <vector>

#include "../hash.h"
#include "../item.h"
#include "range.h"
#include "steps.h"

namespace statepool::store {

template <class Mem>
class SkipList {
 public:
  SkipList(Mem& mem, Addr root) : mem_(mem), root_(root) {}

  static Addr create(Mem& mem) {
    const Addr root = mem.allocate(kRootSize);
    for (Addr a = 0; a < kRootSize; a += 8) mem.fill(root + a, uint64_t{0});
    return root;
  }

  void destroy() {
    for (Addr node = next(head(), 0), after; node != 0; node = after) {
      after = next(node, 0);
      release_node(node);
    }
    mem_.release(root_, kRootSize);
  }

  bool get(Bytes key, std::string& value, uint64_t& lsn) const {
    const Addr node = find(key);
    if (node != 0) read_value(mem_, item_of(node), value, lsn);
    return node != 0;
  }

  uint64_t lsn_of(Bytes key) const {
    const Addr node = find(key);
    return node == 0 ? 0 : mem_.load(item_of(node));
  }

  bool put(Bytes key, Bytes value) {
    Path path = start();
    search(Key(key), head(), kMaxHeight, &path);
    return put_at(path, Key(key), value);
  }

  bool erase(Bytes key) {
    Path path = start();
    search(Key(key), head(), kMaxHeight, &path);
    return erase_at(path, Key(key));
  }

  // Operations on distinct keys in ascending order: each search goes on from where the one before ended, up as far as
  // it must and down again.
  void apply_sorted(const std::vector<BatchOp>& ops, std::vector<bool>& results) {
    Path path = start();
    results.clear();
    for (const BatchOp& op : ops) {
      const Key key(op.key);
      int level = 0;
      while (level < kMaxHeight && before(link(path[level], level), key)) ++level;
      if (level > 0) search(key, path[level - 1], level, &path);
      results.push_back(op.kind == BatchOp::put ? put_at(path, key, op.value) : erase_at(path, key));
    }
  }

  uint64_t size() const { return mem_.load(root_ + Root::size); }

  size_t scan(const Range& range, size_t limit, std::vector<Entry>& out) const {
    return range.reverse ? scan_down(range, limit, out) : scan_up(range, limit, out);
  }

 private:
  static constexpr int kMaxHeight = 20, kRunLevel = 2;
  // A node: its item with its height in the 16 bits above, then a link per level: the next node, 16 bytes of its key.
  static constexpr Addr kItem = 0, kLinks = 8, kLinkSize = 24, kFirst = 8, kSecond = 16;
  static constexpr int kHeightShift = 48;
  // The head is a node without an item.
  static constexpr Addr kHead = Root::own, kRootSize = kHead + kLinks + kLinkSize * kMaxHeight;
  using Path = std::array<Addr, kMaxHeight>;  // by level, the last node before the key

  struct Key {
    Bytes bytes;
    uint64_t first, second;
    explicit Key(Bytes key) : bytes(key), first(word_of(key, 0)), second(word_of(key, 8)) {}
    static uint64_t word_of(Bytes key, size_t at) {
      uint64_t word = 0;
      if (key.size() > at) std::memcpy(&word, key.data() + at, std::min<size_t>(8, key.size() - at));
      return __builtin_bswap64(word);
    }
  };

  Addr head() const { return root_ + kHead; }
  Path start() const {
    Path path;
    path.fill(head());
    return path;
  }
  Addr item_of(Addr node) const { return mem_.load(node + kItem) & ((Addr{1} << kHeightShift) - 1); }
  int height_at(Addr node) const { return static_cast<int>(mem_.load(node + kItem) >> kHeightShift); }
  static Addr link(Addr node, int level) { return node + kLinks + kLinkSize * static_cast<Addr>(level); }
  Addr next(Addr node, int level) const { return mem_.load(link(node, level)); }
  static size_t node_size(int height) { return kLinks + kLinkSize * static_cast<size_t>(height); }
  Steps steps() const { return Steps(size() + kMaxHeight + 1); }

  // One level more with probability 1/4 each.
  static int height_of(Bytes key) {
    const uint64_t bits = hash_bytes(key) >> 8 | uint64_t{1} << 55;
    return std::min(1 + __builtin_ctzll(bits) / 2, kMaxHeight);
  }

  // Sign of the key that a link, which leads somewhere, leads to, against `key`.
  int compare(Addr link, const Key& key) const {
    const uint64_t first = mem_.load(link + kFirst), second = mem_.load(link + kSecond);
    if (first != key.first) return first < key.first ? -1 : 1;
    if (second != key.second) return second < key.second ? -1 : 1;
    const Addr item = item_of(mem_.load(link));
    mem_.touch(item, kItemGuess);
    return compare_key(mem_, item, key.bytes);
  }
  bool before(Addr link, const Key& key) const { return mem_.load(link) != 0 && compare(link, key) < 0; }

  // Goes from `at`, which lies before the key, down from the levels below `level`. Returns the last node before the key.
  Addr search(const Key& key, Addr at, int level, Path* path) const {
    Steps left = steps();
    for (Addr stop = 0; --level >= 0;) {  // stop: a node known not to lie before the key
      for (Addr node; (node = next(at, level)) != stop && node != 0; left.next()) {
        if (compare(link(at, level), key) >= 0) {
          stop = node;
          break;
        }
        at = node;
        mem_.touch(at, node_size(level + 1));
      }
      if (path != nullptr) (*path)[level] = at;
    }
    return at;
  }

  // The node that follows `at`, the last one before the key, if it has the key; else 0.
  Addr match(Addr at, const Key& key) const {
    const Addr node = next(at, 0);
    return node != 0 && compare(link(at, 0), key) == 0 ? node : 0;
  }

  Addr find(Bytes bytes) const {
    const Key key(bytes);
    return match(search(key, head(), kMaxHeight, nullptr), key);
  }

  bool put_at(const Path& path, const Key& key, Bytes value) {
    const Addr found = match(path[0], key);
    if (found != 0) {
      const Addr item = item_of(found);
      if (!rewrite_item(mem_, item, value)) {
        mem_.store(found + kItem, make_item(mem_, key.bytes, value) | static_cast<Addr>(height_at(found)) << kHeightShift);
        release_item(mem_, item);
      }
      note_change(mem_, root_, 0, false);
      return false;
    }
    const int height = height_of(key.bytes);
    const Addr node = mem_.allocate(node_size(height));
    mem_.fill(node + kItem, make_item(mem_, key.bytes, value) | static_cast<Addr>(height) << kHeightShift);
    const uint64_t here[] = {node, key.first, key.second};
    for (int level = 0; level < height; ++level) {
      const Addr from = link(path[level], level);
      const uint64_t after[] = {mem_.load(from), mem_.load(from + kFirst), mem_.load(from + kSecond)};
      mem_.fill(link(node, level), after, kLinkSize);
      mem_.write(from, here, kLinkSize);
    }
    note_change(mem_, root_, 1, false);
    return true;
  }

  bool erase_at(const Path& path, const Key& key) {
    const Addr node = match(path[0], key);
    if (node == 0) return false;
    for (int level = height_at(node) - 1; level >= 0; --level) {
      const Addr from = link(node, level);
      const uint64_t after[] = {mem_.load(from), mem_.load(from + kFirst), mem_.load(from + kSecond)};
      mem_.write(link(path[level], level), after, kLinkSize);
    }
    release_node(node);
    note_change(mem_, root_, -1, true);
    return true;
  }

  void release_node(Addr node) {
    release_item(mem_, item_of(node));
    mem_.release(node, node_size(height_at(node)));
  }

  size_t scan_up(const Range& range, size_t limit, std::vector<Entry>& out) const {
    const Key low(range.low), high(range.high);
    Addr at = range.has_low ? search(low, head(), kMaxHeight, nullptr) : head();
    if (range.has_low && !range.include_low)
      if (const Addr equal = match(at, low); equal != 0) at = equal;
    Steps left = steps();
    size_t count = 0;
    for (Addr node; count < limit && (node = next(at, 0)) != 0; at = node, left.next()) {
      if (range.has_high) {
        const int sign = compare(link(at, 0), high);
        if (sign > 0 || (sign == 0 && !range.include_high)) break;
      }
      mem_.touch(node, node_size(1));
      out.push_back(entry_at(mem_, item_of(node)));
      ++count;
    }
    return count;
  }

  // Links go one way only: a run of nodes between two higher towers is read forwards and handed out backwards.
  size_t scan_down(const Range& range, size_t limit, std::vector<Entry>& out) const {
    const int level = limit < 4 ? 0 : kRunLevel;
    const size_t begin = out.size();
    Steps left = steps();
    Path path = start();
    std::vector<Addr> run;
    Addr end = 0;  // the run ends before this node
    if (range.has_high) {
      const Key high(range.high);
      end = next(search(high, head(), kMaxHeight, &path), 0);
      if (const Addr equal = match(path[0], high); equal != 0 && range.include_high) end = next(equal, 0);
    } else {
      last(path);
    }
    for (;;) {
      run.clear();
      const Addr base = path[level];
      for (Addr node = base == head() ? next(base, 0) : base; node != end; node = next(node, 0), left.next()) {
        if (node == 0) throw Torn{};
        run.push_back(node);
      }
      for (; !run.empty(); run.pop_back()) {
        if (out.size() - begin == limit) return limit;
        Entry entry = entry_at(mem_, item_of(run.back()));
        if (below(entry.key, range)) return out.size() - begin;
        out.push_back(std::move(entry));
      }
      if (base == head()) return out.size() - begin;
      end = base;
      search(Key(out.back().key), head(), kMaxHeight, &path);
    }
  }

  static bool below(Bytes key, const Range& range) {
    return range.has_low && (key < Bytes(range.low) || (key == range.low && !range.include_low));
  }

  // The last node of each level.
  void last(Path& path) const {
    Steps left = steps();
    Addr at = head();
    for (int level = kMaxHeight - 1; level >= 0; --level) {
      for (Addr node; (node = next(at, level)) != 0; at = node) left.next();
      path[level] = at;
    }
  }

  Mem& mem_;
  Addr root_;
};

}  // namespace statepool::store
