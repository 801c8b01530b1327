// The front-end's copies of remote pages, and which of them to give up: the oldest of a random few (paper: hybrid of
// LRU and random replacement), which needs no list to maintain and misses hardly more often than LRU.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "heap.h"

namespace statepool::store {

class PageCache {
 public:
  static constexpr int kSample = 32;

  // Without room (`pages` 0) it keeps what was read until clear().
  PageCache(size_t page, size_t pages) : page_(page), room_(pages) {}

  const std::byte* find(Addr a) {
    const auto found = index_.find(a / page_);
    if (found == index_.end()) return nullptr;
    used_[found->second] = ++clock_;
    return data_.data() + found->second * page_;
  }

  // Makes the pages of [a, a + n) present: one read for each run of missing ones.
  template <class Read>
  void fetch(Addr a, size_t n, Read&& read) {
    const Addr first = a / page_, last = (a + (n == 0 ? 0 : n - 1)) / page_;
    for (Addr p = first; p <= last;) {
      if (find(p * page_) != nullptr) {
        ++p;
        continue;
      }
      Addr end = p + 1;
      while (end <= last && index_.find(end) == index_.end()) ++end;
      buffer_.resize((end - p) * page_);
      read(p * page_, buffer_.data(), buffer_.size());
      ++reads_;
      for (Addr q = p; q < end; ++q) {
        const size_t at = place(q);  // first: it may move the data
        std::memcpy(data_.data() + at * page_, buffer_.data() + (q - p) * page_, page_);
      }
      p = end;
    }
  }

  // Adds the numbers of the pages of [a, a + n) that are not here; whether there are any.
  bool missing(Addr a, size_t n, std::vector<Addr>& numbers) {
    const size_t before = numbers.size();
    for (Addr p = a / page_; p <= (a + (n == 0 ? 0 : n - 1)) / page_; ++p)
      if (find(p * page_) == nullptr) numbers.push_back(p);
    return numbers.size() > before;
  }
  void put_page(Addr number, const std::byte* bytes) {
    if (has(number * page_)) return;
    const size_t at = place(number);
    std::memcpy(data_.data() + at * page_, bytes, page_);
  }
  size_t room() const { return room_; }

  // New bytes of a page, if it is here; they lie within one page.
  void put(Addr a, const std::byte* bytes, size_t n) {
    const auto found = index_.find(a / page_);
    if (found != index_.end()) std::memcpy(data_.data() + found->second * page_ + a % page_, bytes, n);
  }

  // A page of zeros that nobody has written yet, so it need not be read.
  void put_new(Addr a) {
    if (index_.find(a / page_) != index_.end()) return;
    const size_t at = place(a / page_);
    std::memset(data_.data() + at * page_, 0, page_);
  }
  bool has(Addr a) const { return index_.find(a / page_) != index_.end(); }
  size_t page() const { return page_; }

  void clear() {
    index_.clear();
    owner_.clear();
    used_.clear();
    data_.clear();
  }
  bool keeps() const { return room_ > 0; }
  uint64_t reads() const { return reads_; }

 private:
  // A place for a new page, taken from another one if there is no room.
  size_t place(Addr number) {
    size_t at = owner_.size();
    if (room_ == 0 || at < room_) {
      owner_.push_back(number);
      used_.push_back(++clock_);
      data_.resize(data_.size() + page_);
    } else {
      at = victim();
      index_.erase(owner_[at]);
      owner_[at] = number;
      used_[at] = ++clock_;
    }
    index_[number] = at;
    return at;
  }

  size_t victim() {
    size_t oldest = next_random() % owner_.size();
    for (int i = 1; i < kSample; ++i) {
      const size_t other = next_random() % owner_.size();
      if (used_[other] < used_[oldest]) oldest = other;
    }
    return oldest;
  }

  uint64_t next_random() {  // xorshift: which page goes is no part of any result
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    return random_ ^= random_ << 17;
  }

  size_t page_, room_;
  std::unordered_map<Addr, size_t> index_;  // page number -> place
  std::vector<Addr> owner_;
  std::vector<uint64_t> used_;
  std::vector<std::byte> data_, buffer_;
  uint64_t clock_ = 0, random_ = 0x9e3779b97f4a7c15, reads_ = 0;
};

}  // namespace statepool::store
