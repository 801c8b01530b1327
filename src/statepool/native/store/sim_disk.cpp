#include "sim_disk.h"

#include <algorithm>

namespace statepool::store {

const Image::Content* Image::find(const std::string& name) const {
  const auto found = files_.find(name);
  return found == files_.end() ? nullptr : found->second.get();
}

Image::Content& Image::own(const std::string& name) {
  auto& file = files_[name];
  if (file == nullptr) file = std::make_shared<Content>();
  else if (file.use_count() > 1) file = std::make_shared<Content>(*file);
  return *file;
}

void Image::rename(const std::string& from, const std::string& to) {
  auto moved = files_.extract(from);
  files_.erase(to);
  moved.key() = to;
  files_.insert(std::move(moved));
}

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
    const auto* bytes = disk_.image_.find(name_);
    if (bytes == nullptr || offset >= bytes->size()) return 0;
    const size_t n = std::min<size_t>(size, bytes->size() - offset);
    std::memcpy(data, bytes->data() + offset, n);
    return n;
  }
  uint64_t size() const override {
    const std::lock_guard<std::mutex> lock(disk_.mutex_);
    const auto* bytes = disk_.image_.find(name_);
    return bytes == nullptr ? 0 : bytes->size();
  }

 private:
  void put(SimDisk::Kind kind, uint64_t offset, const void* data, size_t size) {
    if (offset % kSector != 0 || size % kSector != 0 || reinterpret_cast<uintptr_t>(data) % kSector != 0)
      throw StoreError(Fault::invalid, name_ + ": a write that is not made of whole, aligned sectors");
    const auto* from = static_cast<const std::byte*>(data);
    disk_.note({kind, name_, {}, offset, size, {from, from + size}});
  }

  SimDisk& disk_;
  std::string name_;
};

void SimDisk::note(Event event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool fails = failures_ > 0 && events_.size() >= fail_at_;
  const std::string name = event.name;
  if (!fails || done_) {
    apply(event, image_);
    events_.push_back(std::move(event));
  }
  if (!fails) return;
  --failures_;
  throw StoreError(fault_, name + ": made to fail");
}

void SimDisk::apply(const Event& e, Image& image) {
  switch (e.kind) {
    case Kind::write:
    case Kind::write_later: {
      auto& bytes = image.own(e.name);
      if (bytes.size() < e.offset + e.size) bytes.resize(e.offset + e.size);
      std::copy(e.data.begin(), e.data.end(), bytes.begin() + static_cast<long>(e.offset));
      break;
    }
    case Kind::sync: break;
    case Kind::create: image.own(e.name).assign(e.size, std::byte{}); break;
    case Kind::rename: image.rename(e.name, e.to); break;
    case Kind::remove: image.remove(e.name); break;
  }
}

std::unique_ptr<File> SimDisk::open(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (image_.find(name) == nullptr) throw StoreError(Fault::missing, name + ": no such file");
  return std::make_unique<SimFile>(*this, name);
}

std::unique_ptr<File> SimDisk::create(const std::string& name, uint64_t size, const Pace&) {
  note({Kind::create, name, {}, 0, size, {}});
  return std::make_unique<SimFile>(*this, name);
}

std::vector<std::string> SimDisk::list(const std::string& folder) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::string start = folder.empty() ? "" : folder + "/";
  std::vector<std::string> names;
  for (const auto& [name, bytes] : image_.files())
    if (name.compare(0, start.size(), start) == 0 && name.find('/', start.size()) == std::string::npos)
      names.push_back(name.substr(start.size()));
  return names;
}

void SimDisk::rename(const std::string& from, const std::string& to) { note({Kind::rename, from, to, 0, 0, {}}); }

void SimDisk::remove(const std::string& name) { note({Kind::remove, name, {}, 0, 0, {}}); }

// ---- the power goes ------------------------------------------------------------------------------------------------

bool PowerCut::next() {
  if (point_ == events_.size()) return false;
  const SimDisk::Event& e = events_[point_++];
  if (e.kind == SimDisk::Kind::write_later) {
    later_.push_back(&e);
  } else {
    if (e.kind == SimDisk::Kind::sync) {
      const auto synced = [&](const SimDisk::Event* w) { return w->name == e.name; };
      for (const SimDisk::Event* w : later_)
        if (synced(w)) SimDisk::apply(*w, base_);
      later_.erase(std::remove_if(later_.begin(), later_.end(), synced), later_.end());
    }
    SimDisk::apply(e, base_);
    // What is certain now cannot be overtaken by an older write of the same place.
    const auto covered = [&](const SimDisk::Event* w) {
      return e.kind == SimDisk::Kind::write && w->name == e.name && w->offset >= e.offset &&
             w->offset + w->size <= e.offset + e.size;
    };
    later_.erase(std::remove_if(later_.begin(), later_.end(), covered), later_.end());
  }
  look();
  return true;
}

void PowerCut::look() {
  sectors_.clear();
  const auto outstanding = [&](const SimDisk::Event& e) {
    const auto* there = base_.find(e.name);
    for (uint64_t at = 0; there != nullptr && at < e.size && e.offset + at + SimDisk::kTear <= there->size(); at += SimDisk::kTear)
      if (std::memcmp(there->data() + e.offset + at, e.data.data() + at, SimDisk::kTear) != 0) sectors_.push_back({&e, at});
  };
  for (const SimDisk::Event* w : later_) outstanding(*w);
  if (point_ == events_.size()) return;
  const SimDisk::Kind kind = events_[point_].kind;
  if (kind == SimDisk::Kind::write || kind == SimDisk::Kind::write_later) outstanding(events_[point_]);
}

uint64_t PowerCut::variants() const {
  if (point_ == events_.size()) return 1;
  switch (events_[point_].kind) {
    case SimDisk::Kind::create: return 4;
    case SimDisk::Kind::write:
    case SimDisk::Kind::rename:
    case SimDisk::Kind::remove: return 2;
    default: return 1;
  }
}

Image PowerCut::image(const std::function<bool(size_t)>& keep, uint64_t variant) const {
  Image out = base_;
  for (size_t i = 0; i < sectors_.size(); ++i) {
    if (!keep(i)) continue;
    const SimDisk::Event& e = *sectors_[i].event;
    std::copy_n(e.data.begin() + static_cast<long>(sectors_[i].offset), SimDisk::kTear,
                out.own(e.name).begin() + static_cast<long>(e.offset + sectors_[i].offset));
  }
  if (variant == 0 || variants() == 1) return out;
  SimDisk::Event e = events_[point_];
  if (e.kind == SimDisk::Kind::write) {
    auto& bytes = out.own(e.name);
    std::fill_n(bytes.begin() + static_cast<long>(e.offset), SimDisk::kTear, std::byte{0xa5});
    return out;
  }
  e.size = e.size * (variant - 1) / 2;  // a file being created: nothing of it, half or all
  SimDisk::apply(e, out);
  return out;
}

std::vector<SimDisk::Event> PowerCut::pending(const std::function<bool(size_t)>& keep) const {
  std::vector<SimDisk::Event> out;
  for (size_t i = 0; i < sectors_.size(); ++i) {
    if (!keep(i)) continue;
    const SimDisk::Event& e = *sectors_[i].event;
    const auto from = e.data.begin() + static_cast<long>(sectors_[i].offset);
    out.push_back({SimDisk::Kind::write_later, e.name, {}, e.offset + sectors_[i].offset, SimDisk::kTear,
                   {from, from + SimDisk::kTear}});
  }
  return out;
}

}  // namespace statepool::store
