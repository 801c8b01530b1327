// Where a store's files live. Two disks exist: the real one (posix_disk.cpp) and a simulated one that records every
// write, so that a test can cut the power between any two of them (sim_disk.h).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bytes.h"

namespace statepool::store {

// Offsets, sizes and buffers of write() are multiples of kSector; the buffer is aligned to it.
class File {
 public:
  virtual ~File() = default;
  // Durable when it returns. Throws StoreError: full (ENOSPC, EDQUOT) or unknown (any other failure).
  virtual void write(uint64_t offset, const void* data, size_t size) = 0;
  // As write(), but durable only after sync().
  virtual void write_later(uint64_t offset, const void* data, size_t size) = 0;
  virtual void sync() = 0;
  // Bytes read, fewer than asked only at the end of the file. Any offset, size and buffer.
  virtual size_t read(uint64_t offset, void* data, size_t size) const = 0;
  virtual uint64_t size() const = 0;
};

// Names are relative to the store's folder ("log/0000000000000001").
class Disk {
 public:
  virtual ~Disk() = default;
  virtual std::unique_ptr<File> open(const std::string& name) = 0;                  // StoreError: missing
  // Zero-written, durable; its name too. `pace` is called between pieces with the bytes written so far: it may sleep, or
  // throw a StoreError to have nothing made.
  using Pace = std::function<void(uint64_t written)>;
  virtual std::unique_ptr<File> create(const std::string& name, uint64_t size, const Pace& pace = {}) = 0;
  virtual std::vector<std::string> list(const std::string& folder) const = 0;        // sorted; empty if none
  virtual void rename(const std::string& from, const std::string& to) = 0;           // durable when it returns
  virtual void remove(const std::string& name) = 0;                                  // durable when it returns
  // Whether nothing may be done behind the caller's back: what happens is a function of the calls.
  virtual bool alone() const { return false; }
};

}  // namespace statepool::store
