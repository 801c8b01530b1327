// Opening, recovering, checkpointing and closing a store.
#include <unistd.h>

#include <random>
#include <system_error>

#include "persist_point.h"
#include "store.h"
#include "structures/any.h"

namespace statepool::store {
namespace {

std::string numbered(const char* folder, uint64_t id) {
  char name[40];
  std::snprintf(name, sizeof(name), "%s/%016llx", folder, static_cast<unsigned long long>(id));
  return name;
}

uint64_t random_word() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

}  // namespace

Store::Store(std::unique_ptr<Disk> disk, const StoreOptions& options) : options_(options), disk_(std::move(disk)) {
  arm_persist_points();
  if (!read_superblock(*disk_, super_)) {
    if (!options.create) throw StoreError(Fault::missing, "store: there is none in this folder");
    super_ = Superblock{};
    for (int i = 0; i < 2; ++i) store_as(super_.uuid + 8 * i, random_word());
    super_.segment_size = options.segment_size;
    super_.capacity = round_up(options.capacity, kBlock);
    super_.first_segment = 1;
    Log::create(*disk_, super_);
    create_superblock(*disk_, super_);  // the store exists from here on
  }
  try {
    recover();
  } catch (...) {
    if (options_.shared && built_) Region::remove(region_name(super_));  // nobody could attach to it
    throw;
  }
  committer_ = std::make_unique<Committer>(*log_, *ring_, heap_->control());
  committer_->flush();
}

void Store::recover() {
  super_.epoch = std::max(super_.epoch + 1, options_.epoch);
  const std::string name = region_name(super_);
  attached_ = options_.shared && attach_heap(name);
  if (!attached_) build_heap(name);
  persist_point("recovery heap");
  const auto heap_at = static_cast<uint64_t>(heap_->base() - region_.data());
  heap_->set_reserve([this, heap_at](Addr a, uint64_t n) { return region_.reserve(heap_at + a, n); });
  ring_ = std::make_unique<Ring>(*heap_);
  open_log();
  persist_point("recovery log");
  super_.clean = 0;
  write_superblock(*disk_, super_);
  persist_point("recovery superblock");
  last_checkpoint_ = super_.checkpoint_id;
  sweep();
  heap_->control().epoch = super_.epoch;
  heap_->control().waits = options_.level == Level::process ? 0 : 1;
  heap_->control().owner_pid = static_cast<uint64_t>(getpid());
}

// Checkpoints that the superblock does not name: unfinished ones, and older ones whose removal a crash prevented.
void Store::sweep() {
  const std::string present = numbered("ckpt", super_.checkpoint_id);
  for (const std::string& name : disk_->list("ckpt"))
    if ("ckpt/" + name != present || super_.checkpoint_id == 0) disk_->remove("ckpt/" + name);
}

// The heap of a process that died, if it is still in memory.
bool Store::attach_heap(const std::string& name) {
  Region region = Region::open(name, true);
  if (!region || super_.clean) return false;
  const auto* control = reinterpret_cast<const Control*>(region.data());
  if (region.size() < kSector || control->nonce != super_.heap_nonce || control->capacity != super_.capacity ||
      Heap::region_size(control->capacity, control->journal_capacity, control->ring_capacity) != region.size())
    return false;
  region_ = std::move(region);
  heap_ = std::make_unique<Heap>(region_.data(), false);
  heap_->recover();
  load_catalog();
  return true;
}

// A new heap from the last checkpoint, or an empty one.
void Store::build_heap(const std::string& name) {
  const uint64_t journal = options_.journal != 0 ? options_.journal : std::max<uint64_t>(32 << 20, super_.capacity / 2);
  const uint64_t size = Heap::region_size(super_.capacity, journal, options_.ring);
  if (options_.shared)
    if (const Region old = Region::open(name, true); old && old.size() >= kSector)
      reinterpret_cast<Control*>(old.data())->owner_pid = 0;  // its readers let go
  built_ = true;
  region_ = options_.shared ? Region::create(name, size) : Region::anonymous(size);
  Heap::prepare(region_.data(), super_.capacity, journal, options_.ring);
  super_.heap_nonce = heap_nonce();
  heap_ = std::make_unique<Heap>(region_.data(), true);
  Control& control = heap_->control();
  control.nonce = super_.heap_nonce;
  if (super_.checkpoint_id != 0) {
    const uint64_t lsn = load_checkpoint(*disk_, numbered("ckpt", super_.checkpoint_id), *heap_);
    if (lsn != super_.checkpoint_lsn) throw StoreError(Fault::corrupt, "meta: it names a checkpoint of another state");
  } else {
    HeapHeader& header = heap_->header();
    header.catalog = HashTable<Heap>::create(*heap_);
    header.clients = HashTable<Heap>::create(*heap_);
    heap_->set_lsn(0);
    heap_->commit();
  }
  control.durable_lsn = control.logged_lsn = super_.checkpoint_lsn;
  load_catalog();
}

uint64_t Store::heap_nonce() { return random_word() | 1; }

// Brings heap, ring and log to one state: what the log has and the heap lacks is applied, what the ring has and the log
// lacks stays in the ring for the committer.
void Store::open_log() {
  Control& control = heap_->control();
  const uint64_t from = heap_->applied_lsn() + 1;
  const LogTail *hint = control.tails, *other = control.tails + 1;
  if (!hint->valid() || (other->valid() && other->first_lsn > hint->first_lsn)) hint = other;
  log_ = Log::open(*disk_, super_, from, [&](const std::byte* record, uint64_t lsn) { replay(record, lsn); }, *hint);
  const uint64_t last = log_->last_lsn();
  if (last < control.durable_lsn)
    throw StoreError(Fault::corrupt, "log: it ends at operation " + std::to_string(last) + " though operation " +
                                         std::to_string(control.durable_lsn) + " was durable; its end is damaged, or " +
                                         "the folder is older than the heap in shared memory " + region_name(super_));
  uint64_t lsn = last, in_log = control.ring_head;
  ring_->each([&](const std::byte* record, uint64_t, uint64_t next) {
    lsn = lsn_near(load_as<RecordHeader>(record).lsn_low, last);
    if (lsn <= last) in_log = next;
    else if (lsn > heap_->applied_lsn()) replay(record, lsn);
  });
  ring_->taken(in_log);
  control.tails[0] = control.tails[1] = log_->tail();
  control.durable_lsn = last;
  control.logged_lsn = std::max(last, lsn);
}

// A transaction counts wholly or not here too: a recovery that is killed goes on from the end of one.
void Store::replay(const std::byte* record, uint64_t lsn) {
  const auto header = load_as<RecordHeader>(record);
  const Bytes body(reinterpret_cast<const char*>(record + sizeof(RecordHeader)), header.length);
  const Operation o = decode_operation(header, body);
  heap_->set_lsn(lsn);
  try {
    if ((header.flags & kTransactionBegin) != 0) replayed_.clear(), replayed_puts_ = true;
    replayed_.push_back(apply(o));
    replayed_puts_ = replayed_puts_ && o.verb == Verb::put;
    if ((header.flags & kTransactionEnd) == 0) return;
    const OperationId id{header.client, header.client_seq};
    const size_t kept = replayed_puts_ ? 1 : replayed_.size();
    if (id.client != 0) remember(id, lsn, replayed_.data() + replayed_.size() - kept, kept);
    persist_point("replay applied");
    heap_->commit();
    adopt(o, replayed_.back());  // what makes or drops a structure is alone in its transaction
  } catch (const StoreError& error) {
    roll_back();
    if (error.fault == Fault::full) throw;
    throw StoreError(Fault::corrupt, "log: operation " + std::to_string(lsn) + " cannot be applied: " + error.what());
  } catch (const Torn&) {
    roll_back();
    throw StoreError(Fault::corrupt, "heap: operation " + std::to_string(lsn) + " found a structure that points outside it");
  }
}

void Store::checkpoint() {
  {
    const std::lock_guard<std::mutex> lock(writer_);
    check_writable();
  }
  make_checkpoint();
}

void Store::make_checkpoint() {
  const std::lock_guard<std::mutex> one_at_a_time(checkpointing_);
  std::unique_ptr<Checkpoint> checkpoint;
  {
    const std::lock_guard<std::mutex> lock(writer_);
    checkpoint = std::make_unique<Checkpoint>(*heap_);
  }
  struct End {
    std::mutex& writer;
    std::unique_ptr<Checkpoint>& checkpoint;
    ~End() {
      const std::lock_guard<std::mutex> lock(writer);
      checkpoint.reset();
    }
  } end{writer_, checkpoint};
  if (checkpoint->lsn() == super_.checkpoint_lsn && super_.checkpoint_id != 0) return;
  // A number is never tried twice: the superblock of a failed try may have reached the disk and name that file.
  const uint64_t id = ++last_checkpoint_;
  write_checkpoint(*checkpoint, numbered("ckpt", id));
  committer_->wait(checkpoint->lsn());  // a checkpoint must not know more than the log
  Superblock next = super_;
  next.checkpoint_id = id;
  next.checkpoint_lsn = checkpoint->lsn();
  next.first_segment = log_->segment_of(checkpoint->lsn() + 1);
  persist_point("checkpoint superblock");
  write_superblock(*disk_, next);
  {
    const std::lock_guard<std::mutex> lock(writer_);
    super_.generation = next.generation;  // word by word: the log reads others of them meanwhile
    super_.checkpoint_id = id;
    super_.checkpoint_lsn = next.checkpoint_lsn;
    super_.first_segment = next.first_segment;
  }
  persist_point("checkpoint sweep");
  sweep();
  persist_point("checkpoint recycle");
  log_->recycle(super_.first_segment);
}

// A failed one is removed: where the disk is full, it would keep it full.
void Store::write_checkpoint(Checkpoint& checkpoint, const std::string& name) {
  try {
    persist_point("checkpoint write");
    checkpoint.write(*disk_, name);
    persist_point("checkpoint written");
  } catch (const StoreError&) {
    try {
      disk_->remove(name);
    } catch (const StoreError&) {
      // The next open sweeps it away.
    }
    throw;
  }
}

// The caller holds the writer lock.
void Store::checkpoint_if_due() {
  if (log_->bytes_since(super_.checkpoint_lsn) < options_.checkpoint_bytes || checkpoint_runs_.exchange(true)) return;
  if (background_.joinable()) background_.join();
  try {
    background_ = std::thread([this] {
      try {
        make_checkpoint();
      } catch (const std::exception&) {
        // The log still has everything; the next commit tries again, and the disk's own error stops the store.
      }
      checkpoint_runs_ = false;
    });
  } catch (const std::system_error&) {
    checkpoint_runs_ = false;  // no thread to be had
  }
}

// No operation starts once `closed_` is set, so what is flushed then is everything. The shared heap goes only if the log
// has all of it: after a failed write it is the one place that has what was acknowledged at the level `process`.
void Store::close() {
  const std::lock_guard<std::mutex> one_at_a_time(closing_);
  {
    const std::lock_guard<std::mutex> lock(writer_);
    if (closed_) return;
    closed_ = true;
  }
  if (background_.joinable()) background_.join();
  persist_point("close flush");
  try {
    committer_->flush();
  } catch (const StoreError&) {
    committer_->stop();
    throw;
  }
  try {
    if (log_->bytes_since(super_.checkpoint_lsn) > options_.checkpoint_bytes / 16) make_checkpoint();
    persist_point("close superblock");
    super_.clean = log_->last_lsn() + 1;
    write_superblock(*disk_, super_);
  } catch (const StoreError&) {
    // Nothing is lost: the log is complete, and the next open reads it as after a crash.
  }
  committer_->stop();
  persist_point("close region");
  heap_->control().owner_pid = 0;  // readers let go
  if (options_.shared) Region::remove(region_name(super_));
}

std::map<std::string, uint64_t> Store::facts() const {
  const std::lock_guard<std::mutex> lock(writer_);
  const HeapHeader& header = heap_->header();
  return {{"applied_lsn", applied_lsn()},   {"durable_lsn", durable_lsn()},
          {"commits", committer_->frames()}, {"log_bytes", log_->bytes_since(super_.checkpoint_lsn)},
          {"heap_used", header.used_bytes},  {"capacity", heap_->capacity()},
          {"epoch", super_.epoch},           {"checkpoint_lsn", super_.checkpoint_lsn},
          {"read_retries", retries()},        {"staged_bytes", ring_->held()},
          {"attached", attached_ ? 1 : 0},    {"log_hinted", log_->hinted() ? 1 : 0}};
}

Store::~Store() {
  try {
    if (committer_ != nullptr) close();
  } catch (const StoreError&) {
    // The log has all that was durable, the shared heap stays for the rest, and the next open replays both.
  }
}

}  // namespace statepool::store
