"""Bugs, one edit each, and the test that must notice.

``old`` occurs exactly once in ``file``. A test that passes with the edit in place proves less than it seems to.
"""

from __future__ import annotations

from dataclasses import dataclass

NATIVE, ROOM, NET = "src/statepool/native/store", "src/statepool/store", "src/statepool/store/net"


@dataclass(frozen=True)
class Mutant:
    """One bug; ``test`` is what pytest is given, files relative to tests/store."""

    name: str
    file: str
    old: str
    new: str
    test: str
    more: tuple[tuple[str, str], ...] = ()
    """Further edits in the same file."""

    @property
    def native(self) -> bool:
        """Whether the module must be compiled again."""
        return self.file.endswith((".cpp", ".h"))

    @property
    def edits(self) -> tuple[tuple[str, str], ...]:
        return ((self.old, self.new), *self.more)


MUTANTS = [
    # ---- what was acknowledged -------------------------------------------------------------------
    Mutant(
        "a write returns before its frame is on the disk",
        f"{NATIVE}/store.cpp",
        "  if (level != Level::process) committer_->wait(lsn);\n  else if (!disk_->alone()",
        "  if (level == Level::mirror) committer_->wait(lsn);\n  else if (!disk_->alone()",
        "test_crash.py::test_power_is_cut_anywhere",
    ),
    Mutant(
        "the Python face returns before the frame is on the disk",
        f"{NATIVE}/store_bindings.cpp",
        "if (wanted == Level::process || lsn <= open().durable_lsn()) return;",
        "if (wanted != Level::mirror || lsn <= open().durable_lsn()) return;",
        "test_system_calls.py::test_an_acknowledgement_leaves_after_the_write",
    ),
    Mutant(
        "a frame is called durable before it is written",
        f"{NATIVE}/committer.cpp",
        '    persist_point("frame before");\n',
        '    __atomic_store_n(&control_.durable_lsn, until, __ATOMIC_RELEASE);\n    persist_point("frame before");\n',
        "test_kill.py -k 'frame and before and test_killed_at_a_point'",
    ),
    Mutant(
        "the ring lets records go before they are written",
        f"{NATIVE}/committer.cpp",
        '    persist_point("frame before");\n',
        '    ring_.taken(position);\n    persist_point("frame before");\n',
        "test_kill.py -k 'frame and before and test_killed_at_a_point'",
    ),
    Mutant(
        "a failed write is forgotten",
        f"{NATIVE}/committer.cpp",
        "    failure_ = failure;\n",
        "    ring_.taken(position);\n    __atomic_store_n(&control_.durable_lsn, until, __ATOMIC_RELEASE);\n",
        "test_crash.py -k 'test_the_disk_fails_anywhere and not long'",
    ),
    Mutant(
        "the log goes on after a failed write",
        f"{NATIVE}/log.cpp",
        "  failed_ = true;  // until the frame is durable\n",
        "",
        "test_log_history.py -k test_a_disk_that_fails",
    ),
    Mutant(
        "the daemon answers before the frame is on the disk",
        f"{NET}/daemon.py",
        "        if level == 0 or lsn <= (daemon.role.mirrored if level == _MIRROR else daemon.native.durable_lsn):",
        "        if level < _MIRROR or lsn <= daemon.role.mirrored:",
        "test_system_calls.py::test_a_daemon_answers_after_the_write",
    ),
    Mutant(
        "the daemon does not wait for the mirror",
        f"{NET}/daemon.py",
        "        (self._mirror if level == _MIRROR else self._disk).append(waiting)",
        "        self._disk.append(waiting)",
        "test_mirror.py::test_a_mirror_copies_follows_and_catches_up",
    ),
    Mutant(
        "a mirror says that it has what it has not synced",
        f"{NET}/mirror.py",
        "            for handle in opened.values():\n                os.fdatasync(handle)\n",
        "",
        "test_system_calls.py::test_a_mirror_says_that_it_has_what_it_has_synced",
    ),
    Mutant(
        "readers are told what a power loss takes back",
        f"{NATIVE}/python_view.h",
        "view_of(key), value, lsn);\n    see(lsn);\n    return found ? nb::object",
        "view_of(key), value, lsn);\n    return found ? nb::object",
        "test_readers.py -k test_a_reader_waits_for_the_disk",
    ),
    Mutant(
        "a reader's len tells what a power loss takes back",
        f"{NATIVE}/python_view.h",
        "    const uint64_t found = view().size(id);\n    see(view().last_change(id));\n",
        "    const uint64_t found = view().size(id);\n",
        "test_readers.py -k test_a_reader_waits_for_the_disk",
    ),
    # ---- names and places of files ---------------------------------------------------------------
    Mutant(
        "a renamed file's folder is not synced",
        f"{NATIVE}/posix_disk.cpp",
        "!= 0) fail(path(from));\n  sync_folder(parent_of(path(to)));",
        "!= 0) fail(path(from));",
        "test_system_calls.py::test_a_name_is_durable_before_what_lies_under_it_counts",
    ),
    Mutant(
        "a new file's folder is not synced",
        f"{NATIVE}/posix_disk.cpp",
        "    file->sync();\n    sync_folder(parent_of(path(name)));\n",
        "    file->sync();\n",
        "test_system_calls.py::test_a_name_is_durable_before_what_lies_under_it_counts",
    ),
    Mutant(
        "both generations of the superblock share a slot",
        f"{NATIVE}/superblock.cpp",
        "file.write(next.generation % 2 * kSector, sector, kSector);",
        "file.write(0, sector, kSector);",
        "test_crash.py::test_power_is_cut_anywhere",
    ),
    Mutant(
        "the folder is not locked",
        f"{NATIVE}/posix_disk.cpp",
        "  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {",
        "  if (flock(lock_, LOCK_UN) != 0) {",
        "test_bad_input.py -k two_writers",
    ),
    Mutant(
        "the heap is not locked",
        f"{NATIVE}/region.cpp",
        "  if (writable && flock(file.fd, LOCK_EX | LOCK_NB) != 0)",
        "  if (writable && flock(file.fd, LOCK_UN) != 0)",
        "test_lifecycle.py::test_a_copy_of_an_open_store_does_not_get_its_heap",
    ),
    Mutant(
        "a fork may use its parent's store",
        f"{NATIVE}/store_bindings.cpp",
        "[] { ++forks; })",
        "[] { forks += 0; })",
        "test_lifecycle.py::test_a_fork_cannot_use_or_destroy_its_parents_store",
    ),
    # ---- reading the log -------------------------------------------------------------------------
    Mutant(
        "the checksum is of a frame's header only",
        f"{NATIVE}/log.cpp",
        "  return crc32c(frame + field + 4, length - field - 4, crc);",
        "  return crc32c(frame + field + 4, sizeof(FrameHeader) - field - 4 + 0 * length, crc);",
        "test_log_damage.py",
        more=(
            ("  header.crc = crc32c(buffer_.get(), size());", "  header.crc = crc_of_frame(buffer_.get(), size());"),
        ),
    ),
    Mutant(
        "the log is cut off at damage",
        f"{NATIVE}/log.cpp",
        '    if (valid_frame_after(at_)) throw corrupt(number_, at_, "a damaged frame");\n',
        "",
        "test_log.py::test_damage_inside_the_log_is_named",
    ),
    Mutant(
        "a missing segment is the end of the log",
        f"{NATIVE}/log.cpp",
        "        if (name.size() == later.size() && name >= later) throw",
        "        if (name.size() == later.size() && name > later + later) throw",
        "test_log.py::test_missing_and_foreign_files",
    ),
    Mutant(
        "a lost end of a closed log is not noticed",
        f"{NATIVE}/log.cpp",
        "  if (last_lsn_ + 1 < super_.clean)\n",
        "  if (last_lsn_ + 1 < super_.clean / 2)\n",
        "test_log.py::test_a_torn_last_frame_is_dropped_only_where_it_can_be_torn",
    ),
    Mutant(
        "another store's segment is read",
        f"{NATIVE}/log.cpp",
        "  if (std::memcmp(header.uuid, super_.uuid, sizeof(header.uuid)) != 0)\n",
        "  if (std::memcmp(header.uuid, super_.uuid, 0) != 0)\n",
        "test_bad_input.py -k another_store",
    ),
    Mutant(
        "frames need not follow one another",
        f"{NATIVE}/log.cpp",
        "header.salt != salt_ || header.prev_crc != prev_crc_ ||\n",
        "header.salt != salt_ ||\n",
        "test_log.py::test_a_whole_frame_that_does_not_follow",
    ),
    Mutant(
        "all uses of a segment share a salt",
        f"{NATIVE}/log.cpp",
        "  return (static_cast<uint64_t>(device()) << 32 | device()) | 1;",
        "  return 1 + 0 * device();",
        "test_log_damage.py test_log_crash.py test_crash.py -k 'not slow and not million'",
    ),
    Mutant(
        "what a killed process began to write is shown before it is durable",
        f"{NATIVE}/log.cpp",
        "void Log::settle() {\n  file_->sync();\n",
        "void Log::settle() {\n",
        "test_log_crash.py::test_power_cuts",
    ),
    Mutant(
        "a torn frame stays in the log",
        f"{NATIVE}/log.cpp",
        "      std::memset(sector.get(), 0, sizeof(header));\n      file_->write(at_, sector.get(), kSector);\n",
        "",
        "test_log_crash.py::test_power_cuts",
    ),
    Mutant(
        "the last operation is applied twice",
        f"{NATIVE}/store_open.cpp",
        "  const uint64_t from = heap_->applied_lsn() + 1;",
        "  const uint64_t from = std::max<uint64_t>(heap_->applied_lsn(), 1);",
        "test_crash.py::test_power_is_cut_anywhere",
    ),
    Mutant(
        "the ring's operations are applied twice",
        f"{NATIVE}/store_open.cpp",
        "    else if (lsn > heap_->applied_lsn()) replay(record, lsn);",
        "    else replay(record, lsn);",
        "test_kill.py -k 'run and logged and test_killed_at_a_point or random_instants and not many'",
    ),
    Mutant(
        "the ring's operations are not applied again",
        f"{NATIVE}/store_open.cpp",
        "    else if (lsn > heap_->applied_lsn()) replay(record, lsn);",
        "",
        "test_kill.py -k 'run and published and test_killed_at_a_point'",
    ),
    Mutant(
        "an older folder gets a newer heap",
        f"{NATIVE}/store_open.cpp",
        "  if (last < control.durable_lsn)\n",
        "  if (last + 1000 < control.durable_lsn)\n",
        "test_lifecycle.py::test_an_older_folder_does_not_get_a_newer_heap",
    ),
    Mutant(
        "openings share an epoch",
        f"{NATIVE}/store_open.cpp",
        "  super_.epoch = std::max(super_.epoch + 1, options_.epoch);",
        "  super_.epoch = std::max(super_.epoch, options_.epoch);",
        "test_lifecycle.py -k test_each_opening_has_an_epoch_of_its_own",
    ),
    # ---- the heap --------------------------------------------------------------------------------
    Mutant(
        "an open transaction is not rolled back",
        f"{NATIVE}/heap.cpp",
        "void Heap::recover() { rollback(); }",
        "void Heap::recover() {\n  control_->journal_tail = 0;\n  release_readers(*control_, base_);\n}",
        "test_kill.py -k 'run and applied and test_killed_at_a_point'",
    ),
    Mutant(
        "the journal counts an entry before it is there",
        f"{NATIVE}/heap.cpp",
        "  std::byte* entry = journal_ + tail;\n",
        "  std::byte* entry = journal_ + tail;\n"
        "  __atomic_store_n(&control_->journal_tail, tail + size, __ATOMIC_SEQ_CST);\n",
        "test_kill_at_an_instruction.py::test_killed_at_many_instructions",
        more=(("  __atomic_store_n(&control_->journal_tail, tail + size, __ATOMIC_RELEASE);\n", ""),),
    ),
    Mutant(
        "the heap changes before the journal knows",
        f"{NATIVE}/heap.h",
        "    check(a, 8);\n    undo(a, 8);\n    __atomic_store_n(word(a), value, __ATOMIC_RELAXED);\n",
        "    check(a, 8);\n    const uint64_t old = load(a);\n    __atomic_store_n(word(a), value, __ATOMIC_SEQ_CST);\n"
        "    std::swap(*word(a), const_cast<uint64_t&>(old));\n    undo(a, 8);\n"
        "    __atomic_store_n(word(a), old, __ATOMIC_RELAXED);\n",
        "test_kill_at_an_instruction.py::test_killed_at_many_instructions",
    ),
    Mutant(
        "the heap commits before the records are published",
        f"{NATIVE}/store.cpp",
        '  persist_point("run staged");\n',
        '  heap_->commit();\n  persist_point("run staged");\n',
        "test_kill.py -k 'run and staged and test_killed_at_a_point'",
        more=(('  heap_->commit();\n  persist_point("run committed");', '  persist_point("run committed");'),),
    ),
    Mutant(
        "memory is handed out again before its transaction commits",
        f"{NATIVE}/heap.cpp",
        "  check(a, n);\n  released_.emplace_back(a, n);\n",
        "  check(a, n);\n  give_back(a, n);\n",
        "test_lifecycle.py::test_a_failed_transaction_leaves_what_it_had_erased",
    ),
    Mutant(
        "a pinned version's memory is used again",
        f"{NATIVE}/snapshots.cpp",
        "    if (pin->second.structure == id) version = std::min(version, pin->second.version);\n",
        "",
        "test_dicts.py -k 'test_against_the_oracle and versioned and not long'",
    ),
    Mutant(
        "a snapshot's lease does not end",
        f"{NATIVE}/snapshots.cpp",
        "found->second.until > now_ms();",
        "found->second.until > 0;",
        "test_dicts.py -k test_a_snapshot_ends_with_its_lease",
    ),
    # ---- checkpoints -----------------------------------------------------------------------------
    Mutant(
        "a checkpoint knows more than the log",
        f"{NATIVE}/store_open.cpp",
        "  committer_->wait(checkpoint->lsn());  // a checkpoint must not know more than the log\n",
        "",
        "test_crash.py::test_power_is_cut_anywhere",
    ),
    Mutant(
        "segments go before the superblock lets them",
        f"{NATIVE}/store_open.cpp",
        '  persist_point("checkpoint superblock");\n',
        '  log_->recycle(next.first_segment);\n  persist_point("checkpoint superblock");\n',
        "test_crash.py::test_power_is_cut_anywhere",
    ),
    Mutant(
        "a checkpoint's head is written before its blocks are durable",
        f"{NATIVE}/checkpoint.cpp",
        '  file->sync();\n  persist_point("checkpoint head");',
        '  persist_point("checkpoint head");',
        "test_crash.py::test_power_is_cut_anywhere",
    ),
    Mutant(
        "blocks that change during a checkpoint are not kept",
        f"{NATIVE}/checkpoint.cpp",
        "  copies_.emplace(block, std::move(copy));\n",
        "",
        "test_lifecycle.py::test_a_checkpoint_is_of_one_moment",
    ),
    Mutant(
        "a checkpoint's blocks are not checked",
        f"{NATIVE}/checkpoint.cpp",
        " || crc32c(buffer.get(), size) != chunk.data_crc)",
        ")",
        "test_log.py::test_the_reader_checks_a_checkpoint",
    ),
    # ---- exactly once ----------------------------------------------------------------------------
    Mutant(
        "outcomes of named operations are not kept",
        f"{NATIVE}/store.cpp",
        "    if (id.client != 0) {\n      const bool all",
        "    if (id.client == 1) {\n      const bool all",
        "test_crash.py::test_power_is_cut_anywhere",
    ),
    Mutant(
        "recovery forgets outcomes",
        f"{NATIVE}/store_open.cpp",
        "    if (id.client != 0) remember(",
        "    if (id.client == 1) remember(",
        "test_crash.py::test_power_is_cut_anywhere",
    ),
    Mutant(
        "what a transaction has read is not checked",
        f"{NATIVE}/store.cpp",
        "      check(seen);\n",
        "",
        "test_daemon.py::test_conflicts_and_bad_calls",
    ),
    Mutant(
        "the daemon does not pass names on",
        f"{NET}/service.py",
        "commit(operations, seen, client, sequence, 0)",
        "commit(operations, seen, 0 * client, sequence, 0)",
        "test_daemon.py::test_a_call_sent_twice_gives_the_first_outcome",
    ),
    Mutant(
        "a repeated call has a new name",
        f"{NET}/remote.py",
        "                link = self._connected(until)\n                reply",
        "                link = self._connected(until)\n"
        '                arguments = (*arguments[:3], arguments[3] + open_ended, *arguments[4:]) if method == "commit" '
        "else arguments\n                reply",
        "test_daemon.py::test_lost_replies_do_not_double_anything",
    ),
    Mutant(
        "a transaction forgets what it read",
        f"{ROOM}/transaction.py",
        "        self._seen.setdefault((self._of.identity, key), lsn)\n",
        "",
        "test_daemon.py::test_conflicts_and_bad_calls",
    ),
    Mutant(
        "deduplication forgets what was acknowledged",
        f"{NATIVE}/structures/queue.h",
        "    if (item_at(mem_, item).key_size != 0) ids_.retire(key_of(mem_, item));",
        "    (void)item;",
        "test_sequences.py::test_deduplication_remembers_the_last_65536_acknowledged",
    ),
    Mutant(
        "deduplication ids are not passed on",
        f"{ROOM}/sequences.py",
        "[name.encode() for name in dedup]",
        "[name.encode()[:0] for name in dedup]",
        "test_sequences.py::test_deduplication_remembers_the_last_65536_acknowledged",
    ),
    # ---- leases, locks, terms --------------------------------------------------------------------
    Mutant(
        "a lease does not end",
        f"{ROOM}/sequences.py",
        "    return round(seconds * 1000)",
        "    return round(seconds * 1000_000)",
        "test_sequences.py -k 'test_against_the_model and Queue and not long'",
    ),
    Mutant(
        "a set clock ends leases",
        f"{ROOM}/sequences.py",
        "    return (_BEGAN + time.clock_gettime_ns(_CLOCK)) // 1_000_000",
        "    return time.time_ns() // 1_000_000",
        "test_sequences.py::test_a_clock_that_is_set_ends_no_lease",
    ),
    Mutant(
        "leases run by the clocks of clients",
        f"{NET}/service.py",
        "        operations = [_stamped(operation) for operation in operations]\n",
        "",
        "test_daemon.py::test_a_client_whose_clock_is_wrong",
    ),
    Mutant(
        "an old holder frees the lock",
        f"{ROOM}/coordination.py",
        '(present["holder"], present["epoch"]) == (self._holder, self.epoch)',
        'present["lease"] > 0',
        "test_sequences.py::test_counters_and_locks",
    ),
    Mutant(
        "an item may be taken more often than allowed",
        f"{NATIVE}/structures/queue.h",
        "get(kLimit) != 0 && mem_.load(at + kTries) >= get(kLimit)",
        "get(kLimit) != 0 && mem_.load(at + kTries) > get(kLimit)",
        "test_sequences.py::test_dead_letters",
    ),
    Mutant(
        "a mirror takes frames of a term that is over",
        f"{NET}/roles.py",
        "        if term < self.term:\n            return False\n        self.term = term\n        return True",
        "        self.term = max(term, self.term)\n        return True",
        "test_simulation.py test_histories.py -k 'nothing_is_lost or of_simulated_machines'",
    ),
    Mutant(
        "a primary acknowledges after its lease",
        f"{NET}/roles.py",
        "return not self.fenced and (self.lease is None or now < self._until)",
        "return not self.fenced",
        "test_simulation.py -k nothing_is_lost",
    ),
    Mutant(
        "the witness lets a mirror reign before the lease has ended",
        f"{NET}/roles.py",
        '        if now < self._until:\n            return self._no((0, 0), "the lease of the primary',
        '        if not node:\n            return self._no((0, 0), "the lease of the primary',
        "test_simulation.py -k nothing_is_lost",
    ),
    Mutant(
        "the witness forgets its vote",
        f"{NET}/witness.py",
        "        if self.role.vote != before:\n",
        "        if self.role.vote == before:\n",
        "test_bad_input.py -k test_a_witness_remembers_its_vote",
    ),
    Mutant(
        "a fenced primary serves again after a restart",
        f"{NET}/serving.py",
        "            write_node(self._folder, self._node)\n\n    async def run",
        "            pass\n\n    async def run",
        "test_mirror.py::test_the_mirror_takes_over_with_a_witness",
    ),
    Mutant(
        "an incomplete copy takes the mirror's place",
        f"{NET}/mirror.py",
        '    if (incoming / "complete").exists():\n',
        "    if incoming.exists():\n",
        "test_bad_input.py -k test_a_copy_that_was_cut_off_is_forgotten",
    ),
    Mutant(
        "a mirror takes damaged frames",
        f"{NET}/mirror.py",
        "                if frame is None or not is_whole(frame, piece.data):",
        "                if frame is None:",
        "test_bad_input.py -k test_a_mirror_refuses",
    ),
    Mutant(
        "a mirror leaves out an empty segment",
        f"{NET}/files.py",
        "                if nothing:\n                    return empty\n",
        "",
        "test_bad_input.py -k test_a_mirror_of_a_log_that_begins_with_an_empty_segment",
    ),
    Mutant(
        "a segment's header comes damaged to a mirror",
        f"{NET}/mirror.py",
        "        if piece.start and parse_segment(piece.start) is None:",
        "        if piece.start and parse_segment(piece.start) is False:",
        "test_bad_input.py -k test_a_mirror_refuses",
    ),
    Mutant(
        "bytes that are no text are an error of the daemon",
        "src/statepool/core/wire.py",
        "except (msgspec.DecodeError, UnicodeDecodeError, RecursionError)",
        "except msgspec.DecodeError",
        "test_bad_input.py -k 'test_messages_with_errors and not million'",
    ),
    Mutant(
        "a message's size is not limited",
        f"{NET}/framing.py",
        "            if magic != _MAGIC or length > LIMIT:",
        "            if magic != _MAGIC:",
        "test_bad_input.py -k test_messages_that_are_none",
    ),
]
