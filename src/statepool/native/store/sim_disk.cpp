#include "sim_disk.h"

#include <algorithm>

namespace statepool::store {

class SimFile final : public File {
 public:
  SimFile(SimDisk& disk, std::string name) : disk_(disk), name_(std::move(name)) {}

  void write(uint64_t offset, const void* data, size_t size) override { put(SimDisk::Kind::write, offset, data, size); }
  void write_later(uint64_t offset, const void* data, size_t size) override {
    put(SimDisk::Kind::write_later, offset, data, size);
  }
  void sync() override { disk_.note({SimDisk::Kind::sync, name_, {}, 0, 0, {}}); }

  size_t read(uint64_t offset, void* data, size_t size) const override {
    const std::lock_guard<std::mutex> lock(disk_.mutex_);
    const auto& bytes = disk_.image_.at(name_);
    if (offset >= bytes.size()) return 0;
    const size_t n = std::min<size_t>(size, bytes.size() - offset);
    std::memcpy(data, bytes.data() + offset, n);
    return n;
  }
  uint64_t size() const override {
    const std::lock_guard<std::mutex> lock(disk_.mutex_);
    return disk_.image_.at(name_).size();
  }

 private:
  void put(SimDisk::Kind kind, uint64_t offset, const void* data, size_t size) {
    if (offset % kSector != 0 || size % kSector != 0)
      throw StoreError(Fault::invalid, name_ + ": a write that is not made of whole sectors");
    const auto* from = static_cast<const std::byte*>(data);
    disk_.note({kind, name_, {}, offset, size, {from, from + size}});
  }

  SimDisk& disk_;
  std::string name_;
};

void SimDisk::note(Event event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (events_.size() >= fail_at_) throw StoreError(fault_, event.name + ": made to fail");
  apply(event, image_);
  events_.push_back(std::move(event));
}

void SimDisk::apply(const Event& e, Image& image) {
  switch (e.kind) {
    case Kind::write:
    case Kind::write_later: {
      auto& bytes = image[e.name];
      if (bytes.size() < e.offset + e.size) bytes.resize(e.offset + e.size);
      std::copy(e.data.begin(), e.data.end(), bytes.begin() + static_cast<long>(e.offset));
      break;
    }
    case Kind::sync: break;
    case Kind::create: image[e.name].assign(e.size, std::byte{}); break;
    case Kind::rename: {
      auto moved = image.extract(e.name);
      image.erase(e.to);
      moved.key() = e.to;
      image.insert(std::move(moved));
      break;
    }
    case Kind::remove: image.erase(e.name); break;
  }
}

std::unique_ptr<File> SimDisk::open(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (image_.count(name) == 0) throw StoreError(Fault::missing, name + ": no such file");
  return std::make_unique<SimFile>(*this, name);
}

std::unique_ptr<File> SimDisk::create(const std::string& name, uint64_t size) {
  note({Kind::create, name, {}, 0, size, {}});
  return std::make_unique<SimFile>(*this, name);
}

std::vector<std::string> SimDisk::list(const std::string& folder) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::string start = folder.empty() ? "" : folder + "/";
  std::vector<std::string> names;
  for (const auto& [name, bytes] : image_)
    if (name.compare(0, start.size(), start) == 0 && name.find('/', start.size()) == std::string::npos)
      names.push_back(name.substr(start.size()));
  return names;
}

void SimDisk::rename(const std::string& from, const std::string& to) { note({Kind::rename, from, to, 0, 0, {}}); }

void SimDisk::remove(const std::string& name) { note({Kind::remove, name, {}, 0, 0, {}}); }

Crash::Crash(const Image& start, const std::vector<SimDisk::Event>& events, size_t point) : base_(start) {
  std::vector<const SimDisk::Event*> later;  // written, and not synced since
  const auto outstanding = [&](const SimDisk::Event& e) {
    for (uint64_t at = 0; at < e.size; at += SimDisk::kTear) sectors_.push_back({&e, at});
  };
  for (size_t i = 0; i < point; ++i) {
    const SimDisk::Event& e = events[i];
    if (e.kind == SimDisk::Kind::write_later) {
      later.push_back(&e);
      continue;
    }
    if (e.kind == SimDisk::Kind::sync) {
      for (const SimDisk::Event* w : later)
        if (w->name == e.name) SimDisk::apply(*w, base_);
      later.erase(std::remove_if(later.begin(), later.end(), [&](const auto* w) { return w->name == e.name; }), later.end());
    }
    SimDisk::apply(e, base_);
  }
  for (const SimDisk::Event* w : later) outstanding(*w);
  if (point == events.size()) return;
  const SimDisk::Event& last = events[point];
  if (last.kind == SimDisk::Kind::write || last.kind == SimDisk::Kind::write_later) outstanding(last);
  else if (last.kind != SimDisk::Kind::sync) directory_ = &last;
}

Image Crash::image(const std::function<bool(size_t)>& keep, bool directory) const {
  Image out = base_;
  for (size_t i = 0; i < sectors_.size(); ++i) {
    if (!keep(i)) continue;
    const SimDisk::Event& e = *sectors_[i].event;
    const auto found = out.find(e.name);
    if (found == out.end() || found->second.size() < e.offset + e.size) continue;
    std::copy_n(e.data.begin() + static_cast<long>(sectors_[i].offset), SimDisk::kTear,
                found->second.begin() + static_cast<long>(e.offset + sectors_[i].offset));
  }
  if (directory && directory_ != nullptr) SimDisk::apply(*directory_, out);
  return out;
}

}  // namespace statepool::store
