// Structures on a front-end: an operation is durable by its record, its effect on the heap waits for its batch.
//
// A batch is coalesced before it is applied: of several writes to a key the last one counts, a push and the pop after it
// vanish. Reads see what waits.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>

#include "frontend.h"
#include "structures/any.h"

namespace statepool::store {

template <class S, class = void>
constexpr bool applies_sorted = false;
template <class S>
constexpr bool applies_sorted<S, std::void_t<decltype(&S::apply_sorted)>> = true;

// The record of an operation, as a front-end sends it.
inline std::string encode_record(Verb verb, uint32_t structure, Bytes a, Bytes b) {
  RecordHeader header{};
  header.type = static_cast<uint16_t>(verb);
  header.structure = structure;
  header.flags = kTransactionBegin | kTransactionEnd;
  const BodyHeader body{static_cast<uint32_t>(a.size()), static_cast<uint32_t>(b.size()), 0, 0};
  header.length = static_cast<uint32_t>(sizeof(body) + round_up(a.size(), 8) + round_up(b.size(), 8));
  std::string out(reinterpret_cast<const char*>(&header), sizeof(header));
  out.append(reinterpret_cast<const char*>(&body), sizeof(body));
  out.append(a).append(round_up(a.size(), 8) - a.size(), '\0');
  out.append(b).append(round_up(b.size(), 8) - b.size(), '\0');
  return out;
}

template <template <class> class S>
class DeferredMap {
 public:
  DeferredMap(Frontend& mem, Addr root) : mem_(mem), structure_(mem, root) {}

  void put(Bytes key, Bytes value) {
    mem_.record(encode_record(Verb::put, 0, key, value));
    if (!mem_.options().batch) {
      structure_.put(key, value);
      return end();
    }
    waiting_[std::string(key)] = std::string(value);
    if (++count_ == mem_.options().batch_operations) flush();
  }

  void erase(Bytes key) {
    mem_.record(encode_record(Verb::erase, 0, key, {}));
    if (!mem_.options().batch) {
      structure_.erase(key);
      return end();
    }
    waiting_[std::string(key)] = std::nullopt;
    if (++count_ == mem_.options().batch_operations) flush();
  }

  bool get(Bytes key, std::string& value) {
    if (const auto found = waiting_.find(std::string(key)); found != waiting_.end()) {
      if (found->second) value = *found->second;
      return found->second.has_value();
    }
    uint64_t lsn = 0;
    const bool present = structure_.get(key, value, lsn);
    mem_.forget();
    return present;
  }

  void flush() {
    if (mem_.options().batch) {
      std::vector<Bytes> keys;
      for (const auto& [key, value] : waiting_) keys.push_back(key);
      mem_.gather(keys.size(), [&](size_t i) { structure_.lsn_of(keys[i]); });
    }
    if constexpr (applies_sorted<S<Frontend>>) {
      std::vector<BatchOp> operations;
      for (const auto& [key, value] : waiting_)
        operations.push_back({value ? BatchOp::put : BatchOp::erase, key, value ? Bytes(*value) : Bytes()});
      std::vector<bool> results;
      structure_.apply_sorted(operations, results);
    } else {
      for (const auto& [key, value] : waiting_) value ? structure_.put(key, *value) : structure_.erase(key);
    }
    waiting_.clear();
    count_ = 0;
    end();
  }

 private:
  void end() {
    if constexpr (has_versions<S<Frontend>>) structure_.collect(structure_.version());  // nobody holds an old version here
    mem_.end();
  }

  Frontend& mem_;
  S<Frontend> structure_;
  std::map<std::string, std::optional<std::string>> waiting_;
  size_t count_ = 0;
};

// A stack or a queue: what waits are values put in, and how many were taken of those in the heap.
template <class S, bool kLast>
class DeferredEnds {
 public:
  DeferredEnds(Frontend& mem, Addr root) : mem_(mem), structure_(mem, root) {}

  void put(Bytes value) {
    mem_.record(encode_record(kLast ? Verb::push : Verb::enqueue, 0, value, {}));
    added_.emplace_back(value);
    end();
  }

  bool take(std::string& value) {
    mem_.record(encode_record(kLast ? Verb::pop : Verb::take, 0, {}, {}));
    bool found = true;
    if (kLast && !added_.empty()) {  // a push and its pop: the heap never hears of them
      value = std::move(added_.back());
      added_.pop_back();
    } else if ((found = peek_heap(taken_, value))) {
      ++taken_;
    } else if ((found = !added_.empty())) {
      value = std::move(added_.front());
      added_.pop_front();
    }
    end();
    return found;
  }

  bool peek(std::string& value) {
    bool found = true;
    if (kLast && !added_.empty()) value = added_.back();
    else if (!(found = peek_heap(taken_, value)) && (found = !added_.empty())) value = added_.front();
    mem_.forget();
    return found;
  }

  void flush() {
    for (; taken_ > 0; --taken_) drop();
    for (const std::string& value : added_) add(value);
    added_.clear();
    count_ = 0;
    mem_.end();
  }

 private:
  void end() {
    if (++count_ >= (mem_.options().batch ? mem_.options().batch_operations : 1)) flush();
  }
  bool peek_heap(uint64_t index, std::string& value) {
    uint64_t lsn = 0;
    if constexpr (kLast) return structure_.at(index, value, lsn);
    else return structure_.front(index, value, lsn);
  }
  void drop() {
    if constexpr (kLast) {
      std::string value;
      structure_.pop(value);
    } else {
      Taken taken;
      structure_.take(0, 0, 0, taken);
    }
  }
  void add(Bytes value) {
    uint64_t sequence = 0;
    if constexpr (kLast) structure_.push(value);
    else structure_.put(value, {}, sequence);
  }

  Frontend& mem_;
  S structure_;
  std::deque<std::string> added_;
  uint64_t taken_ = 0;
  size_t count_ = 0;
};

}  // namespace statepool::store
