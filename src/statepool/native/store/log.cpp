#include "log.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <system_error>

#include "crc32c.h"
#include "errors.h"
#include "persist_point.h"

namespace statepool::store {
namespace {

constexpr uint32_t kSegmentMagic = 0x47535053, kFrameMagic = 0x52465053;  // "SPSG", "SPFR"
constexpr const char* kSpare = "log/spare";  // and others whose names go on behind that
constexpr size_t kSpares = 4;                // of recycled segments that are kept
constexpr const char* kRestore = "restore the folder from a mirror or a copy";

std::string segment_name(uint64_t number) {
  char name[32];
  std::snprintf(name, sizeof(name), "log/%016llx", static_cast<unsigned long long>(number));
  return name;
}

uint64_t random_salt() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32 | device()) | 1;
}

uint32_t crc_of_frame(const std::byte* frame, size_t length) {
  // The whole frame, its own crc field counted as zero.
  constexpr size_t field = offsetof(FrameHeader, crc);
  const uint32_t zero = 0;
  const uint32_t crc = crc32c(&zero, 4, crc32c(frame, field));
  return crc32c(frame + field + 4, length - field - 4, crc);
}

StoreError corrupt(uint64_t segment, uint64_t at, const char* what) {
  return StoreError(Fault::corrupt, segment_name(segment) + ": " + what + " at byte " + std::to_string(at) +
                                        ", with operations after it; " + kRestore);
}

Aligned aligned(size_t size) {
  Aligned buffer(static_cast<std::byte*>(std::aligned_alloc(kSector, size)));
  if (buffer == nullptr) throw StoreError(Fault::full, "log: out of memory for a frame");
  return buffer;
}

}  // namespace

// ---- frames --------------------------------------------------------------------------------------------------------

void FrameBuilder::add(const std::byte* record, size_t size, uint32_t count) {
  const size_t needed = round_up(size_ + size, kSector);
  if (needed > capacity_) {
    const size_t capacity = std::max(needed, 2 * capacity_);
    Aligned bigger = aligned(capacity);
    if (buffer_ != nullptr) std::memcpy(bigger.get(), buffer_.get(), size_);
    buffer_ = std::move(bigger);
    capacity_ = capacity;
  }
  std::memcpy(buffer_.get() + size_, record, size);
  size_ += size;
  records_ += count;
}

void FrameBuilder::seal(FrameHeader header) {
  header.magic = kFrameMagic;
  header.length = static_cast<uint32_t>(size());
  header.records = records_;
  header.payload = static_cast<uint32_t>(size_ - sizeof(FrameHeader));
  header.crc = 0;
  store_as(buffer_.get(), header);
  std::memset(buffer_.get() + size_, 0, size() - size_);
  header.crc = crc32c(buffer_.get(), size());
  store_as(buffer_.get(), header);
}

// ---- writing -------------------------------------------------------------------------------------------------------

std::unique_ptr<Log> Log::create(Disk& disk, const Superblock& super) {
  std::unique_ptr<Log> log(new Log(disk, super));
  log->start_segment(super.first_segment, 0);
  return log;
}

Log::~Log() {
  ending_ = true;
  if (preparing_.joinable()) preparing_.join();
}

void Log::append(FrameBuilder& frame) {
  if (frame.records() == 0) return;
  if (failed_) throw StoreError(Fault::read_only, "log: a write failed earlier; what it left behind is known after reopening");
  failed_ = true;  // until the frame is durable
  FrameHeader header{};
  header.first_lsn = last_lsn_ + 1;
  header.last_lsn = last_lsn_ + frame.records();
  header.epoch = super_.epoch;
  if (frame.size() > size_ - at_) roll(frame.size());
  header.salt = salt_;
  header.prev_crc = prev_crc_;
  frame.seal(header);
  file_->write(at_, frame.data(), frame.size());
  passed(load_as<FrameHeader>(frame.data()));
  filled_ = at_;
  failed_ = false;
  if (!asked_ && at_ > size_ / 4) ask_for_spare();
}

// The frame at at_ is the last one now.
void Log::passed(const FrameHeader& header) {
  tail_ = {number_, at_, header.first_lsn, bytes_, prev_crc_, 0};
  tail_.crc = tail_.sum();
  at_ += header.length;
  bytes_ += header.length;
  prev_crc_ = header.crc;
  last_lsn_ = header.last_lsn;
}

void Log::roll(size_t frame_size) {
  wanted_now_ = true;
  if (preparing_.joinable()) preparing_.join();
  start_segment(number_ + 1, frame_size);
}

void Log::ask_for_spare() {
  asked_ = true;
  if (preparing_.joinable()) preparing_.join();
  wanted_now_ = false;
  if (disk_.alone()) return prepare();
  try {
    preparing_ = std::thread([this] { prepare(); });
  } catch (const std::system_error&) {
    // No thread to be had: the next roll writes its zeros itself.
  }
}

// Writes zeros while the present segment fills, so that the next commit that needs a new one does not wait for them.
void Log::prepare() {
  try {
    {
      const std::lock_guard<std::mutex> lock(files_lock_);
      if (!spares().empty()) return;
    }
    disk_.create("log/unfinished", super_.segment_size, [this](uint64_t written) { keep_pace(written); });
    const std::lock_guard<std::mutex> lock(files_lock_);
    persist_point("prepare rename");
    disk_.rename("log/unfinished", kSpare);
  } catch (const StoreError&) {
    // No room now: the commit that needs the segment tries itself and reports it.
  }
}

// Commits wait for the disk while it writes zeros. Twice as fast as the segment fills is enough to be ready in time.
void Log::keep_pace(uint64_t written) const {
  constexpr int kLongest = 50;  // ms: also where nothing is written, it ends some day
  for (int i = 0; i < kLongest && !wanted_now_ && written > 2 * (filled_ - std::min(filled_.load(), super_.segment_size / 4)); ++i) {
    if (ending_) throw StoreError(Fault::read_only, "log: it is closed");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// The caller holds files_lock_.
std::vector<std::string> Log::spares() const {
  std::vector<std::string> found;
  for (const std::string& name : disk_.list("log"))
    if (name.rfind("spare", 0) == 0) found.push_back("log/" + name);
  return found;
}

// The header is durable before the name is, so a numbered segment always has its own.
void Log::start_segment(uint64_t number, size_t frame_size) {
  const std::lock_guard<std::mutex> lock(files_lock_);
  const std::string name = segment_name(number);
  const uint64_t needed = std::max<uint64_t>(super_.segment_size, kSector + frame_size);
  const auto present = spares();
  const std::string spare = present.empty() ? kSpare : present.front();
  if (!present.empty()) file_ = disk_.open(spare);
  if (present.empty() || file_->size() < needed) file_ = disk_.create(spare, needed);
  asked_ = false;
  size_ = file_->size();
  salt_ = random_salt();
  SegmentHeader header{kSegmentMagic, 1, {}, number, last_lsn_ + 1, super_.epoch, salt_, prev_crc_, 0};
  std::memcpy(header.uuid, super_.uuid, sizeof(header.uuid));
  header.crc = crc32c(&header, offsetof(SegmentHeader, crc));
  alignas(kSector) static thread_local std::byte sector[kSector];
  std::memset(sector, 0, kSector);
  store_as(sector, header);
  persist_point("roll header");
  file_->write(0, sector, kSector);
  file_.reset();
  persist_point("roll rename");
  disk_.rename(spare, name);
  persist_point("roll done");
  file_ = disk_.open(name);
  filled_ = at_ = kSector;
  number_ = number;
  segments_.push_back({number, header.base_lsn});
}

uint64_t Log::bytes_since(uint64_t lsn) const { return lsn < last_lsn_ ? bytes_.load() : 0; }

uint64_t Log::segment_of(uint64_t lsn) const {
  const std::lock_guard<std::mutex> lock(files_lock_);
  uint64_t number = segments_.front().number;
  for (const Segment& s : segments_)
    if (s.base_lsn <= lsn) number = s.number;
  return number;
}

// Takes the number that the superblock names, not an operation's: a segment begun since then must not change what goes.
// Segments that an earlier process was killed before recycling are still there; they go too.
void Log::recycle(uint64_t first) {
  const std::lock_guard<std::mutex> lock(files_lock_);
  bytes_ = 0;
  while (segments_.size() > 1 && segments_.front().number < first) segments_.erase(segments_.begin());
  size_t kept = spares().size();
  for (const std::string& name : disk_.list("log")) {
    if (name.size() != 16 || "log/" + name >= segment_name(first)) continue;
    const bool keep = kept < kSpares && disk_.open("log/" + name)->size() == super_.segment_size;
    persist_point("recycle");
    if (keep) disk_.rename("log/" + name, kSpare + ("-" + name));
    else disk_.remove("log/" + name);
    kept += keep ? 1 : 0;
  }
}

// ---- reading -------------------------------------------------------------------------------------------------------

std::unique_ptr<Log> Log::open(Disk& disk, const Superblock& super, uint64_t from, const Visitor& visit,
                               const LogTail& hint) {
  std::unique_ptr<Log> log(new Log(disk, super));
  if (!log->resume(hint, from)) log->begin(from);
  log->scan(visit, from);
  log->settle();
  return log;
}

// Stands before the frame that the hint names. False if there is no such frame.
bool Log::resume(const LogTail& hint, uint64_t from) {
  if (!hint.valid() || hint.segment < super_.first_segment || hint.first_lsn == 0 || hint.first_lsn > from) return false;
  uint64_t base = 0;
  hinted_ = true;
  for (uint64_t number = super_.first_segment; hinted_ && number <= hint.segment; ++number) hinted_ = enter(number, base);
  if (hinted_) {
    at_ = hint.at;
    last_lsn_ = hint.first_lsn - 1;
    prev_crc_ = hint.prev_crc;
    bytes_ = hint.bytes;
    std::vector<std::byte> frame;
    hinted_ = read_frame(frame, at_);
  }
  if (!hinted_) segments_.clear(), bytes_ = 0;
  return hinted_;
}

void Log::begin(uint64_t from) {
  uint64_t base = 0;
  if (!enter(super_.first_segment, base))
    throw StoreError(Fault::corrupt, segment_name(super_.first_segment) +
                                         ": the first segment of the log is missing or damaged; " + kRestore);
  if (base > from)
    throw StoreError(Fault::corrupt, segment_name(number_) + ": it begins with operation " + std::to_string(base) +
                                         ", those from " + std::to_string(from) + " on are missing; " + kRestore);
  last_lsn_ = base - 1;
}

void Log::scan(const Visitor& visit, uint64_t from) {
  uint64_t base = 0;
  std::vector<std::byte> frame;
  for (;;) {
    while (read_frame(frame, at_)) {
      const auto header = load_as<FrameHeader>(frame.data());
      visit_records(frame, visit, from);
      passed(header);
      if (header.last_lsn <= super_.checkpoint_lsn) bytes_ = 0;
    }
    if (!hinted_ && valid_frame_after(at_)) throw corrupt(number_, at_, "a damaged frame");
    const uint64_t end = at_, size = size_, salt = salt_, number = number_;
    const uint32_t chain = prev_crc_;
    auto present = std::move(file_);
    if (!enter(number + 1, base)) {
      const auto names = disk_.list("log");
      const std::string later = segment_name(number + 1).substr(4);
      for (const std::string& name : names)
        if (name.size() == later.size() && name >= later) throw corrupt(number + 1, 0, "a missing or damaged segment");
      file_ = std::move(present);
      at_ = end, size_ = size, salt_ = salt;
      break;
    }
    if (base != last_lsn_ + 1 || prev_crc_ != chain) throw corrupt(number, end, "a damaged frame");
  }
  if (last_lsn_ + 1 < super_.clean)
    throw StoreError(Fault::corrupt, segment_name(number_) + ": the log was closed after operation " +
                                         std::to_string(super_.clean - 1) + " and now ends with " +
                                         std::to_string(last_lsn_) + " at byte " + std::to_string(at_) + "; " + kRestore);
}

// What a killed process had begun to write may be known to a cache alone: it is made durable before it is shown. Not by
// writing it again, for power lost in the middle of that could take what had been acknowledged.
void Log::settle() {
  file_->sync();
  // A torn frame loses its header, or a later one that is torn too could lend it what it lacks: an operation that was
  // not there would be there again. Its other bytes stay as they are, for even a zero may be what it lacks.
  if (at_ < size_) {
    const Aligned sector = aligned(kSector);
    file_->read(at_, sector.get(), kSector);
    const auto header = load_as<FrameHeader>(sector.get());
    if (header.magic == kFrameMagic && header.salt == salt_) {
      std::memset(sector.get(), 0, sizeof(header));
      file_->write(at_, sector.get(), kSector);
    }
  }
}

// Makes a segment the present one. False if there is none by that number, or its header is damaged.
bool Log::enter(uint64_t number, uint64_t& base_lsn) {
  const std::string name = segment_name(number);
  try {
    file_ = disk_.open(name);
  } catch (const StoreError& error) {
    if (error.fault == Fault::missing) return false;
    throw;
  }
  SegmentHeader header{};
  file_->read(0, &header, sizeof(header));
  if (header.magic != kSegmentMagic) return false;
  if (header.version != 1)
    throw StoreError(Fault::format, name + ": format " + std::to_string(header.version) + ", this program reads 1");
  if (header.crc != crc32c(&header, offsetof(SegmentHeader, crc))) return false;
  if (std::memcmp(header.uuid, super_.uuid, sizeof(header.uuid)) != 0)
    throw StoreError(Fault::corrupt, name + ": belongs to another store");
  if (header.number != number) return false;
  size_ = file_->size();
  if (size_ < super_.segment_size)
    throw StoreError(Fault::corrupt, name + ": cut off at byte " + std::to_string(size_) + "; " + kRestore);
  salt_ = header.salt;
  at_ = kSector;
  prev_crc_ = header.prev_crc;
  number_ = number;
  base_lsn = header.base_lsn;
  segments_.push_back({number, base_lsn});
  return true;
}

// Whether a frame of this segment, next in the chain, starts there.
bool Log::read_frame(std::vector<std::byte>& frame, uint64_t at) const {
  FrameHeader header{};
  if (at + kSector > size_ || file_->read(at, &header, sizeof(header)) != sizeof(header)) return false;
  if (header.magic != kFrameMagic || header.salt != salt_ || header.prev_crc != prev_crc_ ||
      header.first_lsn != last_lsn_ + 1 || header.length % kSector != 0 || header.length == 0 ||
      header.length > size_ - at || header.payload > header.length - sizeof(header))
    return false;
  frame.resize(header.length);
  return file_->read(at, frame.data(), header.length) == header.length &&
         crc_of_frame(frame.data(), header.length) == header.crc;
}

// Whether any later frame of this segment is whole, whatever precedes it. Not a copy of an old one in somebody's value.
bool Log::valid_frame_after(uint64_t at) const {
  constexpr uint64_t kPiece = 1 << 20;
  std::vector<std::byte> piece(std::min(kPiece, size_ - at)), frame;
  for (uint64_t from = at; from < size_; from += kPiece) {
    const size_t got = file_->read(from, piece.data(), std::min<uint64_t>(piece.size(), size_ - from));
    for (size_t i = 0; i + kSector <= got; i += kSector) {
      const auto header = load_as<FrameHeader>(piece.data() + i);
      if (header.magic != kFrameMagic || header.salt != salt_ || header.first_lsn <= last_lsn_ ||
          header.length % kSector != 0 || header.length == 0 || header.length > size_ - from - i)
        continue;
      frame.resize(header.length);
      if (file_->read(from + i, frame.data(), header.length) == header.length &&
          crc_of_frame(frame.data(), header.length) == header.crc)
        return true;
    }
  }
  return false;
}

void Log::visit_records(const std::vector<std::byte>& frame, const Visitor& visit, uint64_t from) const {
  const auto header = load_as<FrameHeader>(frame.data());
  const std::byte *at = frame.data() + sizeof(header), *const end = at + header.payload;
  uint64_t lsn = header.first_lsn;
  for (; at < end; ++lsn) {
    const uint64_t size = record_size(at, static_cast<uint64_t>(end - at));
    if (size == 0 || load_as<RecordHeader>(at).lsn_low != static_cast<uint32_t>(lsn)) break;
    if (lsn >= from) visit(at, lsn);
    at += size;
  }
  if (at != end || lsn != header.last_lsn + 1 || lsn - header.first_lsn != header.records)
    throw StoreError(Fault::corrupt, segment_name(number_) + ": the frame at byte " + std::to_string(at_) +
                                         " has the right checksum and not the records it announces");
}

}  // namespace statepool::store
