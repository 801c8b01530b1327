// A disk in memory that remembers every operation, so that a test can cut the power between or inside any two of them.
//
// At a crash, a write that had returned is on the disk; of one in flight, and of those that nothing has synced yet, any
// set of 512-byte sectors may be; the first one of a write in flight may be neither old nor new. Creating, renaming and removing are durable when they return; the one in flight has
// happened or not, and a file being created may be of any length.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "disk.h"
#include "errors.h"

namespace statepool::store {

// Files by name. Copies share their bytes until one of them is written: a test makes many thousand of them.
class Image {
 public:
  using Content = std::vector<std::byte>;
  const Content* find(const std::string& name) const;
  Content& own(const std::string& name);  // to be changed; made if there is none
  void rename(const std::string& from, const std::string& to);
  void remove(const std::string& name) { files_.erase(name); }
  const std::map<std::string, std::shared_ptr<Content>>& files() const { return files_; }

 private:
  std::map<std::string, std::shared_ptr<Content>> files_;
};

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

  // The operation after `number` of them fails, and those that follow, `count` in all. With `done` they take effect
  // nevertheless: an error does not say that nothing was written.
  void fail_at(uint64_t number, Fault fault, uint64_t count, bool done) {
    fail_at_ = number, fault_ = fault, failures_ = count, done_ = done;
  }

  std::unique_ptr<File> open(const std::string& name) override;
  std::unique_ptr<File> create(const std::string& name, uint64_t size, const Pace& = {}) override;
  std::vector<std::string> list(const std::string& folder) const override;
  void rename(const std::string& from, const std::string& to) override;
  void remove(const std::string& name) override;
  bool alone() const override { return true; }

  static void apply(const Event& event, Image& image);

 private:
  friend class SimFile;
  void note(Event event);  // throws if it is to fail

  Image image_;
  std::vector<Event>& events_;
  uint64_t fail_at_ = 0, failures_ = 0;
  bool done_ = false;
  Fault fault_ = Fault::unknown;
  mutable std::mutex mutex_;
};

// Goes through recorded events: at each the power may go while it is in flight (at the end: after the last one).
class PowerCut {
 public:
  PowerCut(Image start, const std::vector<SimDisk::Event>& events) : base_(std::move(start)), events_(events) { look(); }
  bool next();  // to the next event; false behind the last one
  size_t point() const { return point_; }
  size_t sectors() const { return sectors_.size(); }    // whose being written would change something
  uint64_t variants() const;                            // of what became of the operation in flight
  // keep(i): whether outstanding sector i is on the disk.
  Image image(const std::function<bool(size_t)>& keep, uint64_t variant) const;
  // If not the power went but the process was killed: the kept sectors, as writes on top of base() not synced yet.
  std::vector<SimDisk::Event> pending(const std::function<bool(size_t)>& keep) const;
  const Image& base() const { return base_; }  // everything up to here, as a process that lives on sees it synced

 private:
  struct Sector {
    const SimDisk::Event* event;
    uint64_t offset;  // in the event's data
  };
  void look();

  Image base_;
  const std::vector<SimDisk::Event>& events_;
  size_t point_ = 0;
  std::vector<const SimDisk::Event*> later_;  // written, and not synced since
  std::vector<Sector> sectors_;
};

}  // namespace statepool::store
