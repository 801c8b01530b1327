#include "region.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace statepool::store {
namespace {

std::byte* map(int fd, uint64_t size, bool writable) {
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED | MAP_NORESERVE;
  void* at = mmap(nullptr, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, flags, fd, 0);
  if (at == MAP_FAILED)
    throw StoreError(Fault::full, "heap: cannot map " + std::to_string(size) + " bytes: " + std::strerror(errno));
  return static_cast<std::byte*>(at);
}

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  int release() { return std::exchange(fd, -1); }
};

}  // namespace

Region Region::anonymous(uint64_t size) { return {map(-1, size, true), size, -1}; }

Region Region::create(const std::string& name, uint64_t size) {
  shm_unlink(name.c_str());
  Descriptor file{shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600)};
  if (file.fd < 0 || ftruncate(file.fd, static_cast<off_t>(size)) != 0)
    throw StoreError(Fault::full, "heap: cannot create shared memory " + name + ": " + std::strerror(errno));
  flock(file.fd, LOCK_EX | LOCK_NB);  // nobody else can have it
  std::byte* at = map(file.fd, size, true);
  return {at, size, file.release()};
}

Region Region::open(const std::string& name, bool writable) {
  Descriptor file{shm_open(name.c_str(), writable ? O_RDWR : O_RDONLY, 0)};
  struct stat facts {};
  if (file.fd < 0 || fstat(file.fd, &facts) != 0 || facts.st_size == 0) return {};
  if (writable && flock(file.fd, LOCK_EX | LOCK_NB) != 0)
    throw StoreError(Fault::locked, "heap: shared memory " + name +
                                        " is in use; this folder is a copy of a store that is open: open it with shared=False");
  const auto size = static_cast<uint64_t>(facts.st_size);
  std::byte* at = map(file.fd, size, writable);
  return {at, size, file.release()};
}

void Region::remove(const std::string& name) { shm_unlink(name.c_str()); }

bool Region::reserve(uint64_t offset, uint64_t size) const {
  return fd_ < 0 || posix_fallocate(fd_, static_cast<off_t>(offset), static_cast<off_t>(size)) == 0;
}

Region::Region(Region&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(other.size_), fd_(std::exchange(other.fd_, -1)) {}

Region& Region::operator=(Region&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(fd_, other.fd_);
  return *this;
}

Region::~Region() {
  if (data_ != nullptr) munmap(data_, size_);
  if (fd_ >= 0) {
    flock(fd_, LOCK_UN);  // a forked child may have a copy of the descriptor
    close(fd_);
  }
}

}  // namespace statepool::store
