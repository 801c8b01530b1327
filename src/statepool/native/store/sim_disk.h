// A disk in memory that remembers every operation, so that a test can cut the power between or inside any two of them.
//
// At a crash, a write that had returned is on the disk; of one in flight, and of those that nothing has synced yet, any
// set of 512-byte sectors may be. Creating, renaming and removing are durable when they return; the one in flight has
// happened or not.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <random>

#include "disk.h"
#include "errors.h"

namespace statepool::store {

using Image = std::map<std::string, std::vector<std::byte>>;  // files by name

class SimDisk final : public Disk {
 public:
  static constexpr size_t kTear = 512;  // bytes that a disk writes wholly or not at all
  enum class Kind { write, write_later, sync, create, rename, remove };
  struct Event {
    Kind kind;
    std::string name, to;
    uint64_t offset = 0, size = 0;
    std::vector<std::byte> data;
  };

  // Everything that happens goes to `events`, which outlives the disk.
  SimDisk(Image image, std::vector<Event>& events) : image_(std::move(image)), events_(events) {}

  // The operation with this number (from 0) and all writes after it fail.
  void fail_at(uint64_t number, Fault fault) { fail_at_ = number, fault_ = fault; }

  std::unique_ptr<File> open(const std::string& name) override;
  std::unique_ptr<File> create(const std::string& name, uint64_t size) override;
  std::vector<std::string> list(const std::string& folder) const override;
  void rename(const std::string& from, const std::string& to) override;
  void remove(const std::string& name) override;
  bool alone() const override { return true; }

 private:
  friend class SimFile;
  void note(Event event);  // throws if it is to fail
  static void apply(const Event& event, Image& image);
  friend class Crash;

  Image image_;
  std::vector<Event>& events_;
  uint64_t fail_at_ = ~uint64_t{0};
  Fault fault_ = Fault::unknown;
  mutable std::mutex mutex_;
};

// The power goes while events[point] is in flight (or, at events.size(), after the last one).
class Crash {
 public:
  using Keep = std::function<bool(size_t)>;

  Crash(const Image& start, const std::vector<SimDisk::Event>& events, size_t point);
  size_t sectors() const { return sectors_.size(); }  // that may or may not have been written
  bool in_flight_directory() const { return directory_ != nullptr; }
  // keep(i): whether outstanding sector i is on the disk. `directory`: whether the directory operation happened.
  Image image(const Keep& keep, bool directory) const;
  // What a disk may hold then: every choice of up to ten sectors, else 256, among them prefixes, suffixes, the loss of
  // one and a torn head; with and without the directory operation. Ends when visit() says false. If not `thorough`, every
  // choice of up to three sectors, else eight.
  void each_choice(std::mt19937_64& random, const std::function<bool(const Keep& keep, bool directory)>& visit,
                   bool thorough = true) const;

  // If not the power went but the process was killed: what is certain, and the kept sectors as writes not synced yet.
  const Image& certain() const { return base_; }
  std::vector<SimDisk::Event> pending(const Keep& keep) const;

 private:
  struct Sector {
    const SimDisk::Event* event;
    uint64_t offset;  // in the event's data
    uint64_t at() const { return event->offset + offset; }
  };
  void write(const Sector& sector, Image& image) const;

  Image base_;
  std::vector<Sector> sectors_;
  const SimDisk::Event* directory_ = nullptr;
};

}  // namespace statepool::store
