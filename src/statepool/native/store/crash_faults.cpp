#include <algorithm>

#include "crash_history.h"
#include "crash_test.h"

namespace statepool::store {
namespace {

std::string shortened(const std::string& text) { return text.size() > 300 ? text.substr(0, 300) + "..." : text; }

// The files as a killed process leaves them: all that was written, for the kernel lives on.
Image written(const std::vector<SimDisk::Event>& events) {
  Image image;
  for (const auto& e : events) SimDisk::apply(e, image);
  return image;
}

// Turns over a bit, draws some bytes of one sector anew, or cuts the file off.
void damage(Image::Content& bytes, uint64_t at, uint64_t way, std::mt19937_64& random) {
  if (way < 2) bytes[at] ^= static_cast<std::byte>(1 << random() % 8);
  else if (way == 3) bytes.resize(at);
  else
    for (uint64_t i = 0; i < 1 + random() % 64 && at + i < bytes.size() && (i == 0 || (at + i) % SimDisk::kTear != 0); ++i)
      bytes[at + i] = static_cast<std::byte>(random());
}

// A store one of whose writes to the log failed must say so from then on; a failed checkpoint changes nothing.
std::string after_failure(Store* store) {
  if (store == nullptr) return {};
  const Operation o{Verb::create, 1000, "after", {}, static_cast<uint64_t>(Kind::dict), 0};
  for (const Fault expected : {Fault::unknown, Fault::read_only}) {
    Outcome outcome;
    try {
      store->commit(&o, 1, &outcome, Level::power);
      return expected == Fault::unknown ? "" : "a write succeeded after one whose outcome is unknown";
    } catch (const StoreError& error) {
      if (error.fault == Fault::read_only) return {};
      if (error.fault != Fault::unknown && error.fault != Fault::full) return std::string("an error of another kind: ") + error.what();
    }
  }
  return "the store does not refuse further writes";
}

}  // namespace

CrashReport fault_test(uint64_t seed, uint64_t operations) {
  CrashReport report;
  report.operations = operations;
  for (bool reached = true; reached && report.violation.empty(); ++report.events) {
    for (int way = 0; way < 8 && report.violation.empty(); ++way) {
      History history(seed);
      history.fail_at(report.events, way & 1 ? Fault::full : Fault::unknown, way & 2 ? 1 : 1 << 20, (way & 4) != 0);
      history.run(operations);
      reached = history.failed || history.events.size() > report.events;
      ++report.states;
      const auto& states = history.states;
      const std::string last = states.back().dump, before = states.size() > 1 ? states[states.size() - 2].dump : last;
      std::vector<SimDisk::Event> events;
      const Image left = written(history.events);
      const std::string wrong = history.failed && !(way & 2) ? after_failure(history.store()) : "";
      const std::string found = dump_of(left, events);
      // Without a failure nothing is pending; with one the last operation is.
      if (!wrong.empty() || (found != last && !(history.failed && found == before)))
        report.violation = "disk failed at event " + std::to_string(report.events) + " (way " + std::to_string(way) +
                           "): " + (wrong.empty() ? shortened(found) : wrong);
    }
  }
  return report;
}

CrashReport rot_test(uint64_t seed, uint64_t operations, uint64_t flips) {
  CrashReport report;
  report.operations = operations;
  std::mt19937_64 random(seed);
  for (const bool killed : {false, true}) {
    History history(seed);
    history.run(operations, killed);
    const Image whole = written(history.events);
    const auto& states = history.states;
    for (uint64_t i = 0; i < flips && report.violation.empty(); ++i, ++report.states) {
      Image image = whole;
      auto file = whole.files().begin();
      std::advance(file, random() % whole.files().size());
      auto& bytes = image.own(file->first);
      if (bytes.empty()) continue;
      const uint64_t at = random() % bytes.size(), way = random() % 4;
      damage(bytes, at, way, random);
      std::vector<SimDisk::Event> events;
      const std::string found = dump_of(std::move(image), events);
      size_t before = states.size() - 1;
      while (before > 0 && states[before].dump == states.back().dump) --before;
      const bool torn = killed && file->first.rfind("log/", 0) == 0 && found == states[before].dump;
      if (found != states.back().dump && found.rfind("error: ", 0) != 0 && !torn)
        report.violation = file->first + (way < 2 ? ", a bit" : way == 2 ? ", bytes" : ", cut off") + " at byte " +
                           std::to_string(at) + (killed ? " of a killed store" : " of a closed store") + ": opening gave " + shortened(found);
      if (found.rfind("error: ", 0) == 0) ++report.again;
    }
  }
  return report;
}

}  // namespace statepool::store
