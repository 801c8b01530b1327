#include "crash_test.h"

#include "crash_history.h"

namespace statepool::store {
namespace {

// Chooses sectors: all subsets of few, else some that a real disk is likely to leave, and random ones.
class Subsets {
 public:
  Subsets(size_t sectors, std::mt19937_64& random) : n_(sectors), random_(random) {}
  uint64_t count() const { return n_ <= 10 ? uint64_t{1} << n_ : 256; }
  std::vector<bool> operator()(uint64_t i) {
    std::vector<bool> kept(n_);
    const size_t at = random_() % (n_ + 1);
    for (size_t s = 0; s < n_; ++s) kept[s] = n_ <= 10 ? (i >> s & 1) != 0 : drawn(i, s, at);
    return kept;
  }

 private:
  bool drawn(uint64_t i, size_t s, size_t at) {
    switch (i % 5) {
      case 0: return s < at;                        // a prefix
      case 1: return s >= at;                       // a suffix
      case 2: return s != at;                       // one lost
      case 3: return i > 128 ? s > 0 : s == 0;      // a torn head
      default: return random_() % 2 == 0;
    }
  }

  size_t n_;
  std::mt19937_64& random_;
};

class Enumerator {
 public:
  Enumerator(const History& history, uint64_t seed, CrashReport& report) : history_(history), random_(seed), report_(report) {}

  void run() {
    PowerCut cut({}, history_.events);
    do {
      while (least_ + 1 < history_.states.size() && history_.states[least_ + 1].acknowledged <= cut.point()) ++least_;
      point_ = cut.point();
      each_image(cut, [&](Image image) { check(std::move(image), report_.states % 64 == 0); });
    } while (report_.violation.empty() && cut.next());
  }

 private:
  template <class Visit>
  void each_image(const PowerCut& cut, Visit&& visit) {
    Subsets subsets(cut.sectors(), random_);
    for (uint64_t i = 0; i < subsets.count(); ++i) {
      const std::vector<bool> kept = subsets(i);
      for (uint64_t variant = 0; variant < cut.variants() && report_.violation.empty(); ++variant)
        visit(cut.image([&](size_t s) { return kept[s]; }, variant));
    }
  }

  void check(Image image, bool deeper) {
    ++report_.states;
    std::vector<SimDisk::Event> events;
    const std::string found = dump_of(image, events);
    // What was acknowledged must be there; of what came after only the one operation in flight can be.
    const auto& states = history_.states;
    const bool fits = found == states[least_].dump || (least_ + 1 < states.size() && found == states[least_ + 1].dump);
    if (!fits) {
      report_.violation = "power cut at event " + std::to_string(point_) + " of " + std::to_string(history_.events.size()) +
                          ": opening gave " + (found.size() > 300 ? found.substr(0, 300) + "..." : found);
      return;
    }
    if (!deeper) return;
    PowerCut again(std::move(image), events);
    do {
      each_image(again, [&](Image second) {
        ++report_.again;
        check(std::move(second), false);
      });
    } while (report_.violation.empty() && again.next());
  }

  const History& history_;
  std::mt19937_64 random_;
  CrashReport& report_;
  size_t least_ = 0, point_ = 0;  // last acknowledged state, event in flight
};

}  // namespace

CrashReport crash_test(uint64_t seed, uint64_t operations) {
  CrashReport report;
  History history(seed);
  history.run(operations);
  report.events = history.events.size();
  report.operations = operations;
  Enumerator(history, seed, report).run();
  return report;
}

}  // namespace statepool::store
