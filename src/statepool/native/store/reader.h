// A store that another process has open, seen through the shared memory of its heap: no message, no lock.
#pragma once

#include "region.h"
#include "view.h"

namespace statepool::store {

class Reader : public View {
 public:
  // StoreError: missing (no store, or nobody has it open), format.
  explicit Reader(std::string folder);

  // The id of a structure. StoreError: missing, invalid (another kind).
  uint32_t structure(const std::string& name, Kind kind);
  // Follows structures that were made or dropped, and an owner that died and came back. StoreError: missing if it is
  // gone. Costs two loads.
  uint64_t follow() override;
  bool must_wait(uint64_t lsn) const { return heap_->control().waits != 0 && lsn > durable_lsn(); }
  void wait(uint64_t lsn);  // until it is durable, or the owner is gone

 private:
  void attach();
  bool owner_lives() const;

  std::string folder_;
  Region region_;
  uint64_t catalog_version_ = 0;
};

}  // namespace statepool::store
