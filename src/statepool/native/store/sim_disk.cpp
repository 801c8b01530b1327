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
  using Kind = SimDisk::Kind;
  const auto begin = [&](const SimDisk::Event& e) {
    for (uint64_t at = 0; at < e.size; at += SimDisk::kTear) sectors_.push_back({&e, at});
  };
  // What is certain now cannot be overtaken by an older write of the same place.
  const auto drop = [&](const SimDisk::Event& e, uint64_t size) {
    const auto over = [&](const Sector& s) { return s.event->name == e.name && s.at() >= e.offset && s.at() < e.offset + size; };
    sectors_.erase(std::remove_if(sectors_.begin(), sectors_.end(), over), sectors_.end());
  };
  for (size_t i = 0; i < point; ++i) {
    const SimDisk::Event& e = events[i];
    if (e.kind == Kind::write_later) {
      begin(e);
      continue;
    }
    if (e.kind == Kind::sync)
      for (const Sector& s : sectors_)
        if (s.event->name == e.name) write(s, base_);
    SimDisk::apply(e, base_);
    drop(e, e.kind == Kind::write ? e.size : ~uint64_t{0});
  }
  if (point == events.size()) return;
  const SimDisk::Event& last = events[point];
  if (last.kind == Kind::write || last.kind == Kind::write_later) begin(last);
  else if (last.kind != Kind::sync) directory_ = &last;
}

void Crash::write(const Sector& s, Image& image) const {
  const auto found = image.find(s.event->name);
  if (found == image.end() || found->second.size() < s.at() + SimDisk::kTear) return;
  std::copy_n(s.event->data.begin() + static_cast<long>(s.offset), SimDisk::kTear,
              found->second.begin() + static_cast<long>(s.at()));
}

Image Crash::image(const Keep& keep, bool directory) const {
  Image out = base_;
  for (size_t i = 0; i < sectors_.size(); ++i)
    if (keep(i)) write(sectors_[i], out);
  if (directory && directory_ != nullptr) SimDisk::apply(*directory_, out);
  return out;
}

std::vector<SimDisk::Event> Crash::pending(const Keep& keep) const {
  std::vector<SimDisk::Event> out;
  for (size_t i = 0; i < sectors_.size(); ++i) {
    if (!keep(i)) continue;
    const auto from = sectors_[i].event->data.begin() + static_cast<long>(sectors_[i].offset);
    out.push_back({SimDisk::Kind::write_later, sectors_[i].event->name, {}, sectors_[i].at(), SimDisk::kTear,
                   {from, from + SimDisk::kTear}});
  }
  return out;
}

void Crash::each_choice(std::mt19937_64& random, const std::function<bool(const Keep&, bool)>& visit, bool thorough) const {
  const size_t n = sectors_.size();
  const bool all = n <= (thorough ? 10 : 3);
  const uint64_t choices = all ? uint64_t{1} << n : thorough ? 256 : 8;
  std::vector<bool> kept(n);
  const Keep keep = [&](size_t s) { return kept[s]; };
  for (uint64_t i = 0; i < choices; ++i) {
    const size_t at = random() % (n + 1);
    const uint64_t form = random() % 6;
    for (size_t s = 0; s < n; ++s) {
      if (all) kept[s] = (i >> s & 1) != 0;
      else if (form == 0) kept[s] = s < at;   // a prefix
      else if (form == 1) kept[s] = s >= at;  // a suffix
      else if (form == 2) kept[s] = s != at;  // one lost
      else if (form == 3) kept[s] = s > 0;    // a torn head
      else if (form == 4) kept[s] = s == 0;   // the head alone
      else kept[s] = random() % 2 == 0;
    }
    if (!visit(keep, false)) return;
    if (directory_ != nullptr && !visit(keep, true)) return;
  }
}

}  // namespace statepool::store
