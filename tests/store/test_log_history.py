"""The log against the independent reader, on drawn histories and on a real folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.store.logs import SECTOR, SEGMENT, Logged, drawn, numbered, record
from tests.store.raw_log import LogReader, Record

from statepool.core.errors import InvalidRequest, OutcomeUnknown, StoreCorrupt, StoreFull, StoreReadOnly
from statepool.native import _store  # type: ignore[attr-defined]

bodies = st.binary(max_size=200) | st.integers(0, 3 * SECTOR).map(lambda n: b"x" * n)
fields = st.fixed_dictionaries(
    {
        "flags": st.integers(0, 2**16 - 1),
        "structure": st.integers(0, 2**32 - 1),
        "client": st.integers(0, 2**32 - 1),
        "client_seq": st.integers(0, 2**64 - 1),
        "lock_epoch": st.integers(0, 2**32 - 1),
    }
)


def as_bytes(r: Record) -> bytes:
    plain = record(
        r.body,
        r.type,
        flags=r.flags,
        structure=r.structure,
        client=r.client,
        client_seq=r.client_seq,
        lock_epoch=r.lock_epoch,
    )
    return numbered(plain, r.lsn)


@given(st.integers(0, 2**16 - 1), bodies, fields, st.integers(1, 40))
def test_records_come_back_and_cut_ones_do_not(kind: int, body: bytes, fields: dict[str, int], cut: int) -> None:
    encoded = record(body, kind, **fields)
    ordered = [fields[name] for name in ("flags", "structure", "client", "client_seq", "lock_epoch")]
    assert len(encoded) % 8 == 0
    assert _store.decode_record(encoded) == (kind, body, *ordered)
    assert _store.decode_record(encoded + b"what follows") == (kind, body, *ordered)
    with pytest.raises(StoreCorrupt):
        _store.decode_record(encoded[:-cut])


def test_a_record_has_its_limit() -> None:
    with pytest.raises(InvalidRequest, match="the limit is 17 MiB"):
        record(bytes((17 << 20) + 1))
    with pytest.raises(StoreCorrupt):
        _store.decode_record(((17 << 20) + 1).to_bytes(4, "little") + bytes(18 << 20))


class Machine(RuleBasedStateMachine):
    """A log against the list of what went into it; reopening, checkpoints and the other reader are moves."""

    def __init__(self) -> None:
        super().__init__()
        self.logged = Logged().create()

    @rule(bodies=st.lists(bodies, min_size=1, max_size=5), fields=fields)
    def append(self, bodies: list[bytes], fields: dict[str, int]) -> None:
        self.logged.append(record(body, **fields) for body in bodies)

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        if clean:
            self.logged.close()
        before = self.logged.records
        self.logged.open()
        kept = self.logged.meta.checkpoint_lsn
        assert self.logged.records[kept:] == before[kept:]

    @precondition(lambda self: len(self.logged.records) > self.logged.meta.checkpoint_lsn)
    @rule(data=st.data())
    def checkpoint(self, data: Any) -> None:
        lsn = data.draw(st.integers(self.logged.meta.checkpoint_lsn + 1, len(self.logged.records)))
        self.logged.checkpoint(lsn)
        numbers = [int(name[4:], 16) for name in self.logged.files if name.startswith("log/0")]
        assert min(numbers) == self.logged.meta.first_segment

    @invariant()
    def the_other_reader_agrees(self) -> None:
        reader = LogReader(self.logged.files)
        found = list(reader)
        assert reader.last_lsn == self.logged.log.last_lsn == len(self.logged.records)
        for r in found:
            if r.lsn > self.logged.meta.checkpoint_lsn:
                assert as_bytes(r) == self.logged.records[r.lsn - 1]
        assert not found or [r.lsn for r in found] == list(range(found[0].lsn, reader.last_lsn + 1))


def test_histories() -> None:
    case = Machine.TestCase
    case.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
    case("runTest").runTest()


@pytest.mark.parametrize("full", [True, False])
def test_a_disk_that_fails_at_any_operation(full: bool) -> None:
    kind = StoreFull if full else OutcomeUnknown
    events = len(drawn(3, 14).disk.history)
    for number in range(events):
        logged = Logged()
        logged.disk.fail_at(number, full)
        with pytest.raises(kind):
            logged.create()
            for i in range(40):
                logged.append([record(b"%d" % i * 900)])
        if not any(logged.files.get("meta", b"")):
            continue  # it failed before there was a store
        with pytest.raises(StoreReadOnly, match="reopening"):
            logged.append([record(b"")])
        again = Logged(logged.files).open()
        assert again.records == logged.records
        again.append([record(b"it goes on")])
        assert [as_bytes(r) for r in LogReader(again.files)] == again.records


@pytest.mark.parametrize("folder", ["/dev/shm", None])
def test_on_a_real_folder(folder: str | None) -> None:
    path = Path(tempfile.mkdtemp(dir=folder))
    try:
        disk = _store.PosixDisk(str(path), True)
        logged = Logged(disk=disk, segment=1 << 20).create()
        for i in range(60):
            logged.append(record(b"%d" % n * 20) for n in range(i, i + 1 + i % 7 * 300))
        logged.checkpoint(len(logged.records) // 2)
        assert logged.meta.first_segment > 1
        logged.append([record(b"z" * (2 << 20))])  # more than a segment
        logged.append([record(b"the end")])
        reader = LogReader(path)
        found = [as_bytes(r) for r in reader]
        assert found == logged.records[-len(found) :]
        logged.close()
        kept, records = logged.meta.checkpoint_lsn, logged.records
        del logged, disk
        again = Logged(disk=_store.PosixDisk(str(path), False), segment=1 << 20).open()
        assert again.records[kept:] == records[kept:]
        assert again.log.last_lsn == reader.last_lsn
    finally:
        shutil.rmtree(path)


def test_a_frame_that_does_not_fit_begins_the_next_segment() -> None:
    logged = Logged().create()
    logged.append([record(bytes(SEGMENT - 3 * SECTOR))])
    logged.append([record(bytes(3 * SECTOR))])
    logged.append([record(bytes(9 * SECTOR))])
    sizes = {name: len(data) for name, data in logged.files.items() if name.startswith("log/0")}
    assert sizes == {f"log/{1:016x}": SEGMENT, f"log/{2:016x}": SEGMENT, f"log/{3:016x}": 11 * SECTOR}
    assert [len(r.body) for r in LogReader(logged.files)] == [3 * SECTOR, 3 * SECTOR, 9 * SECTOR]
    with pytest.raises(InvalidRequest, match="its length is not that"):
        logged.log.append([record(b"a") + b"b"])
