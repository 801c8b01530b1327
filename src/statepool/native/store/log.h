// The operation log: segments of frames of records. Layout: docs/store-format.md.
//
// A frame is one group commit: it is written in one piece and counts wholly or not at all. Frames are chained by their
// checksums. With one frame in flight at a time, a broken frame is the torn end of the log only if nothing valid
// follows it; otherwise acknowledged operations were damaged, and opening says so instead of dropping them.
#pragma once

#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "log_tail.h"
#include "record.h"
#include "superblock.h"

namespace statepool::store {

struct FrameHeader {
  uint32_t magic, length, records, payload;  // length: of the whole frame, payload: of its records
  uint64_t first_lsn, last_lsn, epoch, salt;
  uint32_t prev_crc, crc;
  uint64_t reserved;
};
static_assert(sizeof(FrameHeader) == 64);

struct SegmentHeader {
  uint32_t magic, version;
  uint8_t uuid[16];
  uint64_t number, base_lsn, epoch, salt;
  uint32_t prev_crc, crc;
};
static_assert(sizeof(SegmentHeader) == 64);

struct FreeAligned {
  void operator()(std::byte* p) const { std::free(p); }
};
using Aligned = std::unique_ptr<std::byte[], FreeAligned>;  // memory that direct I/O can take

// A frame in the making.
class FrameBuilder {
 public:
  void clear() { size_ = sizeof(FrameHeader), records_ = 0; }
  void add(const std::byte* record, size_t size, uint32_t count = 1);
  void seal(FrameHeader header);  // fills in length, records, payload and crc
  uint32_t records() const { return records_; }
  const std::byte* data() const { return buffer_.get(); }
  size_t size() const { return round_up(size_, kSector); }
  uint32_t crc() const { return load_as<FrameHeader>(buffer_.get()).crc; }

 private:
  Aligned buffer_;
  size_t capacity_ = 0, size_ = sizeof(FrameHeader);
  uint32_t records_ = 0;
};

class Log {
 public:
  // Gets each record of lsn >= `from`, header and body, at its lsn.
  using Visitor = std::function<void(const std::byte* record, uint64_t lsn)>;

  static std::unique_ptr<Log> create(Disk& disk, const Superblock& super);
  // From `hint` on if the log confirms it, from the first segment otherwise. A hint vouches that whatever was acknowledged
  // lies in whole frames: what follows the last one is not looked into. StoreError: corrupt, format, or what the visitor
  // throws; nothing on disk is changed then.
  static std::unique_ptr<Log> open(Disk& disk, const Superblock& super, uint64_t from, const Visitor& visit,
                                   const LogTail& hint = {});
  ~Log();

  // Durable when it returns. StoreError: full, unknown; after one of them read_only, for what is on disk is not known.
  void append(FrameBuilder& frame);
  uint64_t last_lsn() const { return last_lsn_; }
  const LogTail& tail() const { return tail_; }  // of the last frame
  bool hinted() const { return hinted_; }        // whether opening found the hint to be right
  uint64_t bytes_since(uint64_t lsn) const;    // of the frames since the segment that holds it, if any follow
  uint64_t segment_of(uint64_t lsn) const;     // its number, or that of the present segment
  void recycle(uint64_t first);                // segments with lower numbers, once the superblock says so

 private:
  struct Segment {
    uint64_t number, base_lsn;
  };

  Log(Disk& disk, const Superblock& super) : disk_(disk), super_(super) {}
  void roll(size_t frame_size);
  void start_segment(uint64_t number, size_t frame_size);
  std::vector<std::string> spares() const;
  void ask_for_spare();
  void prepare();
  void keep_pace(uint64_t written) const;
  void begin(uint64_t from);
  bool resume(const LogTail& hint, uint64_t from);
  void scan(const Visitor& visit, uint64_t from);
  void passed(const FrameHeader& header);
  void settle();
  bool enter(uint64_t number, uint64_t& base_lsn);
  bool read_frame(std::vector<std::byte>& frame, uint64_t at) const;
  bool valid_frame_after(uint64_t at) const;
  void visit_records(const std::vector<std::byte>& frame, const Visitor& visit, uint64_t from) const;

  Disk& disk_;
  const Superblock& super_;  // its epoch goes into every frame
  std::unique_ptr<File> file_;
  std::vector<Segment> segments_;
  uint64_t number_ = 0, size_ = 0, at_ = 0, salt_ = 0;  // of the present segment
  LogTail tail_;
  bool failed_ = false, hinted_ = false;
  std::atomic<uint64_t> last_lsn_{0}, bytes_{0};  // read by any thread; the rest belongs to the committer
  mutable std::mutex files_lock_;  // of segments_ and the files' names: the committer, a checkpoint, prepare()
  uint32_t prev_crc_ = 0;
  std::thread preparing_;
  bool asked_ = false;                                  // for a spare, since the present segment began
  std::atomic<uint64_t> filled_{0};                     // of the present segment
  std::atomic<bool> wanted_now_{false}, ending_{false};  // how preparing_ shall go on
};

}  // namespace statepool::store
