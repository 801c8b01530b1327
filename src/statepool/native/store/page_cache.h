// The front-end's copies of remote pages, and which of them to give up: SIEVE (NSDI 2024). A hand goes from the oldest page
// to the newest, again and again, and takes the first that was not used since it last came by. A hit only sets a mark; and
// a page that nobody asks for a second time goes soon, so it misses less often than LRU and than the paper's hybrid of
// LRU and random replacement, which is as good as LRU (docs/benchmarks.md, M7).
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "heap.h"

namespace statepool::store {

class PageCache {
 public:
  // Without room (`pages` 0) it keeps what was read until clear().
  PageCache(size_t page, size_t pages) : page_(page), room_(pages) {}

  const std::byte* find(Addr a) {
    const auto found = index_.find(a / page_);
    if (found == index_.end()) return nullptr;
    places_[found->second].used = true;
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
      for (; p < end; ++p) put_page(p, buffer_.data() + buffer_.size() - (end - p) * page_, false);
    }
  }

  // Adds the numbers of the pages of [a, a + n) that are not here; whether there are any.
  bool missing(Addr a, size_t n, std::vector<Addr>& numbers) {
    const size_t before = numbers.size();
    for (Addr p = a / page_; p <= (a + (n == 0 ? 0 : n - 1)) / page_; ++p)
      if (find(p * page_) == nullptr) numbers.push_back(p);
    return numbers.size() > before;
  }
  // `used`: somebody waits for it, so it must not go for another that is read together with it.
  void put_page(Addr number, const std::byte* bytes, bool used) {
    if (has(number * page_)) return;
    const size_t at = place(number);  // first: it may move the data
    std::memcpy(data_.data() + at * page_, bytes, page_);
    places_[at].used = used;
  }
  size_t room() const { return room_; }

  // New bytes of a page, if it is here; they lie within one page.
  void put(Addr a, const std::byte* bytes, size_t n) {
    const auto found = index_.find(a / page_);
    if (found != index_.end()) std::memcpy(data_.data() + found->second * page_ + a % page_, bytes, n);
  }

  // A page of zeros that nobody has written yet, so it need not be read.
  void put_new(Addr a) {
    if (has(a)) return;
    const size_t at = place(a / page_);
    std::memset(data_.data() + at * page_, 0, page_);
  }
  bool has(Addr a) const { return index_.find(a / page_) != index_.end(); }

  void clear() {
    index_.clear();
    places_.clear();
    data_.clear();
    newest_ = oldest_ = hand_ = kNone;
  }
  bool keeps() const { return room_ > 0; }

 private:
  static constexpr size_t kNone = ~size_t{0};
  struct Place {
    Addr number;
    size_t older, newer;
    bool used;
  };

  // A place for a new page, taken from another one if there is no room.
  size_t place(Addr number) {
    size_t at = places_.size();
    if (room_ == 0 || at < room_) {
      places_.emplace_back();
      data_.resize(data_.size() + page_);
    } else {
      at = victim();
      index_.erase(places_[at].number);
    }
    places_[at] = {number, newest_, kNone, false};
    (newest_ == kNone ? oldest_ : places_[newest_].newer) = at;
    newest_ = at;
    index_[number] = at;
    return at;
  }

  size_t victim() {
    size_t at;
    const auto onward = [&](size_t next) { at = next == kNone ? oldest_ : next; };
    for (onward(hand_); places_[at].used; onward(places_[at].newer)) places_[at].used = false;
    const Place& gone = places_[at];
    hand_ = gone.newer;
    (gone.older == kNone ? oldest_ : places_[gone.older].newer) = gone.newer;
    (gone.newer == kNone ? newest_ : places_[gone.newer].older) = gone.older;
    return at;
  }

  size_t page_, room_;
  std::unordered_map<Addr, size_t> index_;  // page number -> place
  std::vector<Place> places_;
  std::vector<std::byte> data_, buffer_;
  size_t newest_ = kNone, oldest_ = kNone, hand_ = kNone;
};

}  // namespace statepool::store
