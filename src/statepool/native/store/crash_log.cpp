#include "crash_log.h"

#include <algorithm>
#include <functional>
#include <random>

#include "log.h"
#include "sim_disk.h"

namespace statepool::store {
namespace {

constexpr uint64_t kSegment = 6 * kSector;  // its header and five sectors of frames
constexpr int kLives = 3;                   // the first run, and two that recover from a crash of the one before

using Record = std::vector<std::byte>;

bool same(const std::byte* record, uint64_t size, const Record& other) {
  return size == other.size() && std::memcmp(record, other.data(), size) == 0;
}

// One life of the log: from opening it until the crash.
class Life {
 public:
  // `past`: writes that an earlier life had begun and that caches still hold.
  Life(const Image& disk, std::vector<SimDisk::Event> past)
      : events(std::move(past)), before(events.size()), start(disk), disk_(seen(), events) {}

  struct Mark {
    size_t events;  // that had happened
    uint64_t least;  // the log cannot end before this lsn from then on
  };
  std::vector<SimDisk::Event> events;
  const size_t before;  // of them are from an earlier life
  const Image start;
  std::vector<Mark> marks;
  std::vector<Record> records;  // records[lsn - 1]; what was attempted, in this life or shown to it
  std::vector<uint64_t> ends;   // lsns that a frame ends with
  Superblock super;

  void create() {
    super.segment_size = kSegment;
    for (int i = 0; i < 16; ++i) super.uuid[i] = static_cast<uint8_t>(i + 1);
    super.epoch = 1;
    log_ = Log::create(disk_, super);
    create_superblock(disk_, super);
    note(0);
  }

  // Opens and compares with what `earlier` did. Returns what is wrong.
  std::string recover(const Life& earlier, uint64_t least) {
    if (!read_superblock(disk_, super)) return least == 0 ? "" : "there is no store any more";
    records = earlier.records;
    ends = earlier.ends;
    ++super.epoch;
    uint64_t next = super.checkpoint_lsn + 1;
    std::string wrong;
    log_ = Log::open(disk_, super, next, [&](const std::byte* record, uint64_t lsn) {
      const uint64_t size = record_size(record, ~uint64_t{0});
      if (lsn != next++) wrong = "operation " + std::to_string(lsn) + " where " + std::to_string(next - 1) + " belongs";
      else if (lsn > records.size()) wrong = "operation " + std::to_string(lsn) + " was never logged";
      else if (!same(record, size, records[lsn - 1])) wrong = "operation " + std::to_string(lsn) + " is another";
    });
    const uint64_t last = log_->last_lsn();
    if (!wrong.empty()) return wrong;
    if (last < least) return "it ends with " + std::to_string(last) + ", " + std::to_string(least) + " was durable";
    if (last != 0 && std::find(ends.begin(), ends.end(), last) == ends.end())
      return "it ends within a frame, with " + std::to_string(last);
    if (next != std::max(last, super.checkpoint_lsn) + 1) return "it shows less than it has";
    records.resize(last);
    while (!ends.empty() && ends.back() > last) ends.pop_back();
    super.clean = 0;
    write_superblock(disk_, super);
    note(last);
    return "";
  }

  void run(uint64_t steps, int life, std::mt19937_64& random) {
    if (log_ == nullptr) return;
    for (uint64_t i = 0; i < steps; ++i) {
      const uint64_t dice = random() % 16;
      if (dice < 2) checkpoint(random);
      else if (dice == 2) reopen(random() % 2 == 0);
      else append(life, random);
    }
  }

  bool opened_at(size_t point) const { return !marks.empty() && marks.front().events <= point; }
  uint64_t least_at(size_t point, uint64_t otherwise) const {
    for (size_t i = marks.size(); i-- > 0;)
      if (marks[i].events <= point) return marks[i].least;
    return otherwise;
  }

 private:
  Image seen() const {
    Image all = start;
    for (const SimDisk::Event& e : events) SimDisk::apply(e, all);
    return all;
  }
  void note(uint64_t least) { marks.push_back({events.size(), least}); }

  void append(int life, std::mt19937_64& random) {
    frame_.clear();
    const uint64_t many = 1 + random() % 4;
    for (uint64_t i = 0; i < many; ++i) {
      const uint32_t dice = random() % 12, length = dice == 0 ? 9000 : dice == 1 ? 4032 : random() % 90;
      Record record(sizeof(RecordHeader) + round_up(length, 8));
      const uint64_t lsn = records.size() + 1;
      const RecordHeader header{length, 3, 0, static_cast<uint32_t>(life), 0, lsn, 0, static_cast<uint32_t>(lsn)};
      store_as(record.data(), header);
      for (size_t b = sizeof(header); b < sizeof(header) + length; ++b) record[b] = static_cast<std::byte>(random());
      frame_.add(record.data(), record.size());
      records.push_back(std::move(record));
    }
    ends.push_back(records.size());
    log_->append(frame_);
    note(records.size());
  }

  void checkpoint(std::mt19937_64& random) {
    if (log_->last_lsn() == super.checkpoint_lsn) return;
    super.checkpoint_lsn += 1 + random() % (log_->last_lsn() - super.checkpoint_lsn);
    super.first_segment = log_->segment_of(super.checkpoint_lsn + 1);
    write_superblock(disk_, super);
    // Without a spare one, an old segment is used again with all that is in it.
    const auto names = disk_.list("log");
    if (random() % 4 != 0 && std::find(names.begin(), names.end(), "spare") != names.end()) disk_.remove("log/spare");
    log_->recycle(super.first_segment);
  }

  void reopen(bool clean) {
    if (clean) {
      super.clean = log_->last_lsn() + 1;
      write_superblock(disk_, super);
    }
    log_.reset();
    read_superblock(disk_, super);
    ++super.epoch;
    log_ = Log::open(disk_, super, super.checkpoint_lsn + 1, [](const std::byte*, uint64_t) {});
    super.clean = 0;
    write_superblock(disk_, super);
  }

  SimDisk disk_;
  std::unique_ptr<Log> log_;
  FrameBuilder frame_;
};

class LogEnumerator {
 public:
  explicit LogEnumerator(uint64_t seed) : random_(seed) {}

  CrashReport run(uint64_t steps) {
    Life first({}, {});
    first.create();
    first.run(steps, 0, random_);
    report.operations = first.records.size();
    report.events = first.events.size();
    crashes(first, first, 0, 1);
    return report;
  }

 private:
  // The first crash is tried everywhere; those of later lives for some of the lives only, and in fewer ways.
  // Until a life has opened the log, what it may find is what the one before it left.
  void crashes(const Life& life, const Life& earlier, uint64_t floor, int number) {
    PowerCut cut(life.start, life.events);
    do {
      if (cut.point() < life.before) continue;
      const uint64_t least = life.least_at(cut.point(), floor);
      const Life& known = life.opened_at(cut.point()) ? life : earlier;
      each_choice(cut.sectors(), number == 1, [&](const Keep& keep) {
        for (uint64_t variant = 0; variant < cut.variants(); ++variant)
          next(known, number, least, cut.image(keep, variant), {}, cut.point());
        // A kill leaves names durable, see PosixDisk; so only writes can be pending.
        if (cut.sectors() > 0) next(known, number, least, cut.base(), cut.pending(keep), cut.point());
        return report.violation.empty();
      });
    } while (report.violation.empty() && cut.next());
  }

  // Every choice of few sectors, else some, among them prefixes, suffixes, the loss of one and torn heads.
  using Keep = std::function<bool(size_t)>;
  void each_choice(size_t n, bool thorough, const std::function<bool(const Keep&)>& visit) {
    const bool all = n <= (thorough ? 10 : 3);
    const uint64_t choices = all ? uint64_t{1} << n : thorough ? 256 : 8;
    std::vector<bool> kept(n);
    for (uint64_t i = 0; i < choices; ++i) {
      const size_t at = random_() % (n + 1);
      const uint64_t form = random_() % 6;
      for (size_t s = 0; s < n; ++s) {
        if (all) kept[s] = (i >> s & 1) != 0;
        else if (form == 0) kept[s] = s < at;   // a prefix
        else if (form == 1) kept[s] = s >= at;  // a suffix
        else if (form == 2) kept[s] = s != at;  // one lost
        else if (form == 3) kept[s] = s > 0;    // a torn head
        else if (form == 4) kept[s] = s == 0;   // the head alone
        else kept[s] = random_() % 2 == 0;
      }
      if (!visit([&](size_t s) { return kept[s]; })) return;
    }
  }

  void next(const Life& earlier, int number, uint64_t least, Image image, std::vector<SimDisk::Event> past, size_t point) {
    const bool killed = !past.empty();
    ++report.states;
    if (number > 1) ++report.again;
    std::string wrong;
    try {
      Life life(std::move(image), std::move(past));
      wrong = life.recover(earlier, least);
      if (wrong.empty() && number < kLives && random_() % (number == 1 ? 32 : 128) == 0) {
        life.run(random_() % 4, number, random_);
        crashes(life, earlier, least, number + 1);
      }
    } catch (const StoreError& error) {
      wrong = error.what();
    }
    if (!wrong.empty() && report.violation.empty())
      report.violation = std::string(killed ? "killed" : "power cut") + " in life " + std::to_string(number) + " at event " +
                         std::to_string(point) + " of " + std::to_string(earlier.events.size()) + ": " + wrong;
  }

  std::mt19937_64 random_;

 public:
  CrashReport report;
};

}  // namespace

CrashReport crash_log(uint64_t seed, uint64_t steps) { return LogEnumerator(seed).run(steps); }

}  // namespace statepool::store
