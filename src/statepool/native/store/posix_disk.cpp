#include "posix_disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "errors.h"

namespace statepool::store {
namespace {

[[noreturn]] void fail(const std::string& what) {
  const int error = errno;
  const std::string message = what + ": " + std::strerror(error);
  if (error == ENOSPC || error == EDQUOT) throw StoreError(Fault::full, message);
  if (error == ENOENT) throw StoreError(Fault::missing, message);
  if (error == EACCES || error == EROFS || error == EPERM) throw StoreError(Fault::read_only, message);
  throw StoreError(Fault::unknown, message);
}

struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

class PosixFile final : public File {
 public:
  // O_DSYNC makes each write durable; O_DIRECT saves the copy into the page cache, but tmpfs and others refuse it.
  explicit PosixFile(std::string path) : path_(std::move(path)) {
    direct_ = ::open(path_.c_str(), O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
    if (direct_ < 0 && errno == EINVAL) direct_ = ::open(path_.c_str(), O_RDWR | O_DSYNC | O_CLOEXEC);
    if (direct_ < 0) fail(path_);
    plain_ = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
    if (plain_ < 0) {
      ::close(direct_);
      fail(path_);
    }
  }
  ~PosixFile() override {
    ::close(direct_);
    ::close(plain_);
  }
  PosixFile(const PosixFile&) = delete;
  PosixFile& operator=(const PosixFile&) = delete;

  void write(uint64_t offset, const void* data, size_t size) override { write_all(direct_, offset, data, size); }
  void write_later(uint64_t offset, const void* data, size_t size) override { write_all(plain_, offset, data, size); }
  void sync() override {
    if (fdatasync(plain_) != 0) fail(path_);
  }

  void zero(uint64_t size, bool direct, const Disk::Pace& pace) {
    constexpr uint64_t kPiece = 256 << 10;
    alignas(kSector) static const std::byte zeros[kPiece] = {};
    const Descriptor fd{::open(path_.c_str(), O_WRONLY | O_CLOEXEC | (direct ? O_DIRECT : 0))};
    if (fd.number < 0) fail(path_);
    for (uint64_t at = 0; at < size; at += kPiece) {
      write_all(fd.number, at, zeros, std::min(kPiece, size - at));
      if (pace) pace(at + kPiece);
    }
  }

  size_t read(uint64_t offset, void* data, size_t size) const override {
    size_t done = 0;
    while (done < size) {
      const ssize_t n = pread(plain_, static_cast<char*>(data) + done, size - done, static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail(path_);
      if (n == 0) break;
      done += static_cast<size_t>(n);
    }
    return done;
  }

  uint64_t size() const override {
    struct stat facts {};
    if (fstat(plain_, &facts) != 0) fail(path_);
    return static_cast<uint64_t>(facts.st_size);
  }

 private:
  void write_all(int fd, uint64_t offset, const void* data, size_t size) {
    const char* from = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t n = pwrite(fd, from, size, static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n == 0) errno = EIO;
      if (n <= 0) fail(path_);
      from += n;
      offset += static_cast<uint64_t>(n);
      size -= static_cast<size_t>(n);
    }
  }

  std::string path_;
  int direct_ = -1, plain_ = -1;
};

void sync_folder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail(path);
  const int result = fsync(fd);
  const int error = errno;
  ::close(fd);
  errno = error;
  if (result != 0) fail(path);
}

std::string parent_of(const std::string& path) {
  const size_t slash = path.find_last_of('/', path.find_last_not_of('/'));
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// With all folders above it, each one's name durable: a store whose folder is lost is lost.
void make_folder(const std::string& path) {
  for (size_t at = 0; at != std::string::npos;) {
    at = path.find('/', at + 1);
    const std::string part = path.substr(0, at);
    if (mkdir(part.c_str(), 0700) == 0) sync_folder(parent_of(part));
    else if (errno != EEXIST) fail(part);
  }
}

}  // namespace

PosixDisk::PosixDisk(std::string folder, bool create) : folder_(std::move(folder)) {
  struct stat facts {};
  const bool present = stat(folder_.c_str(), &facts) == 0;
  if (present && !S_ISDIR(facts.st_mode)) throw StoreError(Fault::invalid, "path: " + folder_ + " is a file, not a folder");
  if (!present && !create) throw StoreError(Fault::missing, "path: there is no folder " + folder_);
  if (!present) make_folder(folder_);
  if (access(folder_.c_str(), W_OK) != 0) throw StoreError(Fault::read_only, "path: " + folder_ + " cannot be written");
  lock_ = ::open(path("lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_ < 0) fail(path("lock"));
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    throw StoreError(Fault::locked, "path: " + folder_ + " is open already, here or in another process; close it there");
  }
  // A process may have been killed between a rename and its fsync: names that are seen from here on are durable.
  sync_folder(folder_);
  for (const char* part : {"log", "ckpt"})
    if (stat(path(part).c_str(), &facts) == 0) sync_folder(path(part));
  const int probe = ::open(path("lock").c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
  direct_ = probe >= 0;
  if (probe >= 0) ::close(probe);
}

// Unlocked by name, because a forked child may hold the same lock by its copy of the descriptor.
PosixDisk::~PosixDisk() {
  flock(lock_, LOCK_UN);
  ::close(lock_);
}

std::unique_ptr<File> PosixDisk::open(const std::string& name) { return std::make_unique<PosixFile>(path(name)); }

// Space is taken by writing zeros: merely reserved space would cost a journal commit at each first write. They pass by the
// page cache if that can be, for each page there would have to be dropped when it is written over.
std::unique_ptr<File> PosixDisk::create(const std::string& name, uint64_t size, const Pace& pace) {
  make_folder(parent_of(path(name)));
  const int fd = ::open(path(name).c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) fail(path(name));
  ::close(fd);
  try {
    auto file = std::make_unique<PosixFile>(path(name));
    file->zero(size, direct_, pace);
    file->sync();
    sync_folder(parent_of(path(name)));
    return file;
  } catch (const StoreError&) {
    unlink(path(name).c_str());  // half a file would keep what room there is
    throw;
  }
}

std::vector<std::string> PosixDisk::list(const std::string& folder) const {
  std::vector<std::string> names;
  DIR* dir = opendir(path(folder).c_str());
  if (dir == nullptr) return names;
  while (const dirent* entry = readdir(dir))
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  closedir(dir);
  std::sort(names.begin(), names.end());
  return names;
}

void PosixDisk::rename(const std::string& from, const std::string& to) {
  if (::rename(path(from).c_str(), path(to).c_str()) != 0) fail(path(from));
  sync_folder(parent_of(path(to)));
}

void PosixDisk::remove(const std::string& name) {
  if (unlink(path(name).c_str()) != 0 && errno != ENOENT) fail(path(name));
  sync_folder(parent_of(path(name)));
}

}  // namespace statepool::store
