// A remote heap with the timing of RDMA and non-volatile memory, in one process and on a clock of its own. It is a
// model to compare mechanisms by, not a transport: no network is involved.
#pragma once

#include "frontend.h"

namespace statepool::store {

struct SimTiming {
  uint64_t round_trip = 2000, read = 100, write = 300;  // ns: of the network, of the memory behind it
  uint64_t post = 150;                                  // to hand over a message nobody waits for
  double per_byte = 0.08;                               // 100 Gbit/s
};

class SimPort final : public Port {
 public:
  SimPort(Heap& heap, const SimTiming& timing) : heap_(heap), timing_(timing) {}

  void read(Addr a, void* out, size_t n) override {
    ++reads;
    spend(timing_.round_trip + timing_.read, n);
    heap_.read(a, out, n);
  }
  void read_all(const std::vector<Read>& reads) override {
    ++this->reads;
    posts += reads.size();
    size_t bytes = 0;
    for (const Read& r : reads) {
      heap_.read(r.at, r.out, r.size);
      bytes += r.size;
    }
    spend(timing_.round_trip + timing_.read + timing_.post * reads.size(), bytes);
  }
  void append(Bytes record) override {
    ++appends;
    spend(timing_.round_trip + timing_.write, record.size());
  }
  void write(Addr a, const void* bytes, size_t n) override {
    ++writes;
    spend(timing_.round_trip + timing_.write, n);
    heap_.fill(a, bytes, n);
  }
  void transact(const std::vector<Write>& log, const std::vector<std::byte>& bytes, bool wait) override {
    ++transactions;
    spend(wait ? timing_.round_trip + timing_.write : timing_.post, bytes.size() + log.size() * sizeof(Write));
    for (const Write& w : log) heap_.fill(w.at, bytes.data() + w.offset, w.size);
  }
  Addr allocate_block(size_t n) override {
    ++calls;
    spend(timing_.round_trip + timing_.write, 0);
    const Addr a = heap_.allocate(n);
    heap_.commit();
    return a;
  }
  void release_block(Addr a, size_t n) override {
    ++calls;
    spend(timing_.round_trip + timing_.write, 0);
    heap_.release(a, n);
    heap_.commit();
  }

  uint64_t reads = 0, appends = 0, writes = 0, transactions = 0, calls = 0, posts = 0, nanoseconds = 0;

 private:
  void spend(uint64_t ns, size_t bytes) { nanoseconds += ns + static_cast<uint64_t>(static_cast<double>(bytes) * timing_.per_byte); }

  Heap& heap_;
  SimTiming timing_;
};

}  // namespace statepool::store
