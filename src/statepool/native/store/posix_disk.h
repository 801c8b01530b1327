// A folder of the file system. Writes go around the page cache where the file system allows it.
#pragma once

#include "disk.h"

namespace statepool::store {

class PosixDisk final : public Disk {
 public:
  // Takes the folder for this process alone. StoreError: locked, missing, read_only.
  PosixDisk(std::string folder, bool create);
  ~PosixDisk() override;
  PosixDisk(const PosixDisk&) = delete;
  PosixDisk& operator=(const PosixDisk&) = delete;

  std::unique_ptr<File> open(const std::string& name) override;
  std::unique_ptr<File> create(const std::string& name, uint64_t size, const Pace& pace = {}) override;
  std::vector<std::string> list(const std::string& folder) const override;
  void rename(const std::string& from, const std::string& to) override;
  void remove(const std::string& name) override;
  bool direct() const { return direct_; }  // false: the file system has no O_DIRECT, writes pass its page cache

 private:
  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  std::string folder_;
  int lock_ = -1;
  bool direct_ = false;
};

}  // namespace statepool::store
