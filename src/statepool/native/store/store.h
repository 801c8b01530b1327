// The store: one folder, one heap, one log, and what callers do with them.
//
// A writing call encodes its operations into the staging ring, applies them to the heap in one transaction, publishes
// both, and waits until its durability level is reached. A reading call takes no lock.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint.h"
#include "committer.h"
#include "disk.h"
#include "item.h"
#include "log.h"
#include "operation.h"
#include "region.h"
#include "ring.h"
#include "structures/range.h"
#include "superblock.h"
#include "view.h"

namespace statepool::store {

enum class Level : int8_t { inherit = -1, process, power, mirror };

struct StoreOptions {
  uint64_t capacity = 1ull << 30;       // bytes of heap; pages are taken when first used
  uint64_t segment_size = 64 << 20;     // of the log
  uint64_t ring = 64 << 20;
  uint64_t journal = 0;  // 0: half of the capacity, which the dropping of a structure as large as the heap may need
  uint64_t checkpoint_bytes = 256 << 20;  // of log since the last checkpoint, then one is made in the background
  uint64_t epoch = 0;  // the least that this opening has
  Level level = Level::power;
  bool create = true;
  bool shared = true;  // heap in named shared memory; otherwise in this process only
};

// What a transaction has read: the entry's lsn then (0: absent), or with `whole` the structure's last change.
struct Seen {
  uint32_t structure;
  Bytes key;
  uint64_t lsn;
  bool whole;
};

// Names one operation of one client for all time: doing it again gives the outcome of the first time.
struct OperationId {
  uint32_t client = 0;  // 0: none
  uint64_t sequence = 0;
};

// Clients from here on are slots of remote callers: what changes nothing need not be done once only, and is not logged.
constexpr uint32_t kFirstSlot = 1u << 31;

// A version of a multi-version structure that is kept for a reader.
struct Snapshot {
  uint64_t number = 0;  // names the pin
  uint32_t structure = 0;
  Addr record = 0;      // what the structure's *_at methods take
  uint64_t version = 0, size = 0;
};

class Store : public View {
 public:
  Store(std::unique_ptr<Disk> disk, const StoreOptions& options);
  ~Store();
  void close();  // durable, with a checkpoint when the log has grown; idempotent

  // ---- structures ------------------------------------------------------------------------------------------------
  uint32_t structure(const std::string& name, Kind kind, bool create);  // its id. StoreError: missing, invalid
  void drop(uint32_t id);

  // ---- writing ---------------------------------------------------------------------------------------------------
  // All operations or none, with their outcomes; returns the lsn to settle.
  uint64_t submit(const Operation* operations, size_t count, Outcome* outcomes, OperationId id = {},
                  const std::vector<Seen>& seen = {});
  bool settle(uint64_t lsn, Level level);  // returns when it has reached the level
  void validate(const std::vector<Seen>& seen) const;  // StoreError: conflict, as submit(). For a commit of nothing
  // Both.
  uint64_t commit(const Operation* operations, size_t count, Outcome* outcomes, Level level, OperationId id = {},
                  const std::vector<Seen>& seen = {});
  bool wait(uint64_t lsn) { return committer_->wait(lsn); }
  void flush() { committer_->flush(); }
  // The last transaction of a client: its sequence number and outcomes (of nothing but puts, that of the last one);
  // sequence 0 if there is none.
  uint64_t last_of(uint32_t client, std::vector<Outcome>& outcomes) const;

  Level level(Level wanted) const { return wanted == Level::inherit ? options_.level : wanted; }
  // A reader must not be told what a power loss could take back: wait for this lsn before handing it on.
  bool must_wait(uint64_t lsn) const { return options_.level != Level::process && lsn > durable_lsn(); }

  // ---- snapshots of multi-version structures ---------------------------------------------------------------------
  // Holds the present version for `lease` ms. Reading it later than that raises StoreError expired.
  Snapshot pin(uint32_t id, uint64_t lease);
  void unpin(const Snapshot& snapshot);
  bool get_at(const Snapshot& snapshot, Bytes key, std::string& value) const;
  void scan_at(const Snapshot& snapshot, const Range& range, size_t limit, std::vector<Entry>& out) const;

  void checkpoint();
  std::map<std::string, uint64_t> facts() const;

 private:
  static uint64_t heap_nonce();
  bool attach_heap(const std::string& name);
  void build_heap(const std::string& name);
  void open_log();
  void replay(const std::byte* record, uint64_t lsn);
  void recover();
  void sweep();
  void make_checkpoint();
  void write_checkpoint(Checkpoint& checkpoint, const std::string& name);
  void check_writable() const;
  void check(const std::vector<Seen>& seen) const;
  bool known(OperationId id, Outcome* outcomes, size_t count, uint64_t& lsn) const;
  uint64_t run(const Operation* operations, size_t count, Outcome* outcomes, OperationId id);
  void gather(const Operation* operations, size_t count) const;
  Outcome apply(const Operation& operation);
  void roll_back();
  void remember(OperationId id, uint64_t lsn, const Outcome* outcomes, size_t count);
  void stage(const Operation& operation, OperationId id, uint64_t lsn, uint16_t flags);
  uint64_t oldest_pinned(uint32_t id, uint64_t version);
  bool pinned(const Snapshot& snapshot) const;
  template <class Body>
  auto read_pinned(const Snapshot& snapshot, Body&& body) const;
  void adopt(const Operation& operation, const Outcome& outcome);
  void checkpoint_if_due();

  StoreOptions options_;
  std::unique_ptr<Disk> disk_;
  Superblock super_;
  Region region_;
  std::unique_ptr<Ring> ring_;
  std::unique_ptr<Log> log_;
  std::unique_ptr<Committer> committer_;
  mutable std::mutex writer_;
  std::mutex creating_, checkpointing_, closing_;
  std::pair<uint32_t, Addr> dropping_{};  // a structure whose drop is not committed yet, and its root
  struct Pin {
    uint32_t structure;
    uint64_t version, until;  // until: ms of the steady clock
  };
  std::map<uint64_t, Pin> pins_;  // by number
  uint64_t next_pin_ = 1;
  mutable std::mutex pins_lock_;
  std::atomic<bool> checkpoint_runs_{false};
  std::thread background_;  // writes a checkpoint when the log has grown
  uint64_t last_checkpoint_ = 0;  // number of the last one tried
  std::vector<Outcome> replayed_;  // of the transaction that is being replayed
  bool replayed_puts_ = true;      // and whether it is nothing but puts
  bool closed_ = false;
  bool attached_ = false;  // to the heap of a process that died
  bool built_ = false;     // a heap of its own instead
};

}  // namespace statepool::store
