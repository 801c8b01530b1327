"""Damaged logs: each is told from a torn one, and neither reader ever gives less without saying so."""

from __future__ import annotations

import random

import pytest
from tests.store.logs import SECTOR, Logged, drawn, record
from tests.store.raw_log import LogReader

from statepool.core.errors import NotFound, StatepoolError, StoreCorrupt, StoreError, StoreFormat
from statepool.native import _store  # type: ignore[attr-defined]

ONE, TWO = f"log/{1:016x}", f"log/{2:016x}"


def outcome(files: dict[str, bytes], ours: bool) -> list[bytes] | type[StatepoolError]:
    """The bodies that are read, or the error."""
    try:
        if not ours:
            return [r.body for r in LogReader(files)]
        return [_store.decode_record(r)[1] for r in Logged(files).open().records if r]
    except StatepoolError as error:
        assert str(error).startswith(("log/0", "meta: ", "store: ")), str(error)
        return type(error)


def flipped(files: dict[str, bytes], name: str, byte: int, bit: int = 0) -> dict[str, bytes]:
    data = bytearray(files[name])
    data[byte] ^= 1 << bit
    return files | {name: bytes(data)}


def last_frame(files: dict[str, bytes]) -> tuple[str, int, int]:
    """Its file, and where it begins and ends."""
    reader = LogReader(files)
    list(reader)
    assert reader.end is not None
    name, end = reader.end.file, reader.end.offset
    starts = [at for at in range(SECTOR, end, SECTOR) if files[name][at : at + 4] == b"SPFR"]
    return name, starts[-1], end


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_are_noticed_or_do_not_matter(seed: int, clean: bool) -> None:
    logged = drawn(seed, 9)
    if clean:
        logged.close()
    files = logged.files
    whole = [_store.decode_record(r)[1] for r in logged.records]
    torn = [_store.decode_record(r)[1] for r in logged.records[: logged.ends[-2]]]
    name, start, end = last_frame(files)
    noise = random.Random(seed)
    places = [(n, b) for n, data in files.items() for b in sorted(noise.sample(range(len(data)), 60))]
    places += [(n, b) for n in files for b in range(0, 128, 5)]
    places += [(n, at + b) for n in (ONE, TWO) for at in range(0, 6 * SECTOR, SECTOR) for b in range(0, 64, 9)]
    seen = set()
    for file, byte in places:
        damaged = flipped(files, file, byte, noise.randrange(8))
        ours = outcome(damaged, True)
        if noise.random() < 0.2:
            assert ours == outcome(damaged, False), (file, byte)
        if isinstance(ours, type):
            assert issubclass(ours, StoreError)
        elif ours != whole:
            # Only the last frame of a store that was not closed: nothing tells it from a torn one.
            assert ours == torn and file == name and start <= byte < end and not clean, (file, byte)
        seen.add(ours if isinstance(ours, type) else len(ours))
    assert StoreCorrupt in seen and len(whole) in seen


def test_every_bit_of_every_frame_header() -> None:
    files = drawn(5, 6).files
    name, start, _ = last_frame(files)
    places = [at for at in range(SECTOR, len(files[ONE]), SECTOR) if files[ONE][at : at + 4] == b"SPFR"]
    for at in places:
        for bit in range(64 * 8):
            found = outcome(flipped(files, ONE, at + bit // 8, bit % 8), True)
            assert found is StoreCorrupt or ((name, start) == (ONE, at) and isinstance(found, list))


def test_a_torn_tail_is_dropped_and_written_over() -> None:
    logged = drawn(1, 4)
    files = logged.files
    name, start, end = last_frame(files)
    for keep in range(start, end, 512):
        data = files[name][:keep] + bytes(len(files[name]) - keep)
        again = Logged(files | {name: data}).open()
        assert again.records in (logged.records[: logged.ends[-2]], logged.records)
        again.append([record(b"new")])
        assert [r.body for r in LogReader(again.files)][-1] == b"new"
        assert Logged(again.files).open().records == again.records


def test_old_frames_of_a_recycled_segment_are_not_read() -> None:
    files = drawn(2, 12).files
    logged = Logged(files | {"log/spare": files[ONE]}).open()
    end = len(logged.records)
    present = set(files)
    while not (new := {name for name in logged.files if name.startswith("log/0")} - present):
        logged.append([record(b"a sector")])
    old = logged.files[new.pop()]  # the spare one, which looks like the first
    assert b"SPFR" in old[3 * SECTOR :]
    assert outcome(logged.files, True) == outcome(logged.files, False)
    assert Logged(logged.files).open().records == logged.records
    assert len(logged.records) > end


def test_a_copy_of_an_old_frame_in_a_value_is_not_taken_for_a_later_one() -> None:
    logged = Logged(segment=16 * SECTOR).create()
    logged.append([record(b"old")])
    old = logged.files[ONE][SECTOR : 2 * SECTOR]
    logged.append([record(bytes(SECTOR - 64 - 32) + old + bytes(SECTOR))])  # on a boundary of its own frame
    files = logged.files
    assert files[ONE][3 * SECTOR : 4 * SECTOR] == old
    torn = flipped(files, ONE, 2 * SECTOR + 70)
    assert outcome(torn, True) == outcome(torn, False) == [b"old"]


def test_segments_missing_foreign_cut_or_of_a_newer_format() -> None:
    logged = drawn(4, 16)
    files = logged.files
    assert f"log/{3:016x}" in files
    without_two = {name: data for name, data in files.items() if name != TWO}
    without_one = {name: data for name, data in files.items() if name != ONE}
    cut = files | {TWO: files[TWO][:-SECTOR]}
    other = Logged()
    other.meta.uuid = b"another store..."
    foreign = files | {TWO: other.create().files[ONE]}
    last = max(name for name in files if name.startswith("log/0"))
    cases = {
        "missing": (without_two, StoreCorrupt),
        "first missing": (without_one, StoreCorrupt),
        "cut off": (cut, StoreCorrupt),
        "last cut off": (files | {last: files[last][:-SECTOR]}, StoreCorrupt),
        "foreign": (foreign, StoreCorrupt),
        "swapped": (files | {ONE: files[TWO], TWO: files[ONE]}, StoreCorrupt),
        "an older copy": (files | {TWO: drawn(4, 16).files[TWO]}, StoreCorrupt),
        "newer segment": (flipped(files, ONE, 4, 1), StoreFormat),
        "newer store": (flipped(flipped(files, "meta", 4, 1), "meta", SECTOR + 4, 1), StoreFormat),
        "no meta": ({name: data for name, data in files.items() if name != "meta"}, StoreCorrupt),
        "empty meta": (files | {"meta": bytes(2 * SECTOR)}, StoreCorrupt),
        "damaged meta": (flipped(flipped(files, "meta", 40), "meta", SECTOR + 40), StoreCorrupt),
        "begins too late": (files | {"meta": later_start(files)}, StoreCorrupt),
    }
    for what, (damaged, error) in cases.items():
        assert outcome(damaged, True) is error, what
        assert outcome(damaged, False) is error, what
    unmade = {ONE: Logged().create().files[ONE]}
    assert outcome(unmade, False) is outcome({}, False) is NotFound
    assert not _store.Superblock(SECTOR).read(_store.SimDisk(unmade))


def later_start(files: dict[str, bytes]) -> bytes:
    """A superblock that names the second segment without a checkpoint."""
    logged = Logged(files)
    assert logged.meta.read(logged.disk)
    logged.meta.first_segment = 2
    logged.meta.write(logged.disk)
    return bytes(logged.files["meta"])


def test_a_log_that_ends_too_early_after_it_was_closed() -> None:
    logged = drawn(6, 5)
    logged.close()
    name, start, _ = last_frame(logged.files)
    lost = logged.files | {name: logged.files[name][:start] + bytes(len(logged.files[name]) - start)}
    assert outcome(lost, True) is outcome(lost, False) is StoreCorrupt
    assert Logged(logged.files).open().records == logged.records
