#include "reader.h"

#include <signal.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "superblock.h"

namespace statepool::store {

Reader::Reader(std::string folder) : folder_(std::move(folder)) { attach(); }

void Reader::attach() {
  Superblock super;
  if (!peek_superblock(folder_ + "/meta", super)) throw StoreError(Fault::missing, "path: there is no store in " + folder_);
  region_ = Region::open(region_name(super), false);
  const auto* control = reinterpret_cast<const Control*>(region_.data());
  if (!region_ || region_.size() < kSector || control->nonce != super.heap_nonce)
    throw StoreError(Fault::missing, "path: no process has " + folder_ + " open; a reader sees the memory of its owner");
  heap_ = std::make_unique<Heap>(region_.data(), false);
  catalog_version_ = 1;  // of no catalog
}

bool Reader::owner_lives() const {
  const auto pid = static_cast<pid_t>(__atomic_load_n(&heap_->control().owner_pid, __ATOMIC_ACQUIRE));
  return pid != 0 && (kill(pid, 0) == 0 || errno == EPERM);
}

uint64_t Reader::follow() {
  if (__atomic_load_n(&heap_->control().owner_pid, __ATOMIC_ACQUIRE) == 0) attach();  // closed; perhaps open again
  for (;;) {
    const uint64_t version = View::follow();
    if ((version & ~uint64_t{1}) == catalog_version_) return version;
    catalog_version_ = version & ~uint64_t{1};
    load_catalog();  // waits while it is being changed, and is called again then
  }
}

uint32_t Reader::structure(const std::string& name, Kind kind) {
  follow();
  const auto found = names_.find(name);
  if (found == names_.end()) throw StoreError(Fault::missing, "name: there is no structure '" + name + "'");
  const Kind present = table_.at(found->second).kind;
  if (present != kind)
    throw StoreError(Fault::invalid, "name: '" + name + "' is a " + kind_name(present) + ", not a " + kind_name(kind));
  return found->second;
}

void Reader::wait(uint64_t lsn) {
  while (must_wait(lsn)) {
    if (!owner_lives()) throw StoreError(Fault::missing, "store: its owner died; what it wrote last is not durable yet");
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace statepool::store
