"""The files themselves: what another reader finds in them, and what damage does."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import crc32c as wheel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import statepool.store
from statepool.core.errors import StoreCorrupt, StoreError, StoreFormat
from statepool.store import logreader
from statepool.store.logreader import FRAME, META, RECORD, SECTOR, SEGMENT, Files, crc32c
from statepool.store.logreplay import replay
from statepool.store.native import core


def open_store(path: Path) -> statepool.store.Store:
    return statepool.store.open(path, shared=False, capacity="16MiB", segment_size="64KiB")


def killed(path: Path, entries: int, size: int = 3000) -> Path:
    """A folder as a killed process leaves it: dictionary "d" with 0 .. entries - 1, one frame each."""
    with open_store(path) as store:
        d = store.dict("d")
        for i in range(entries):
            d[b"%d" % i] = b"%d." % i * (size // 4)
        copy = path.with_name(path.name + "-killed")
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns("spare*", "unfinished"))
    return copy


def content(path: Path) -> dict[bytes, bytes]:
    with open_store(path) as store:
        return dict(store.dict("d"))


def segment(path: Path, number: int) -> Path:
    return path / "log" / f"{number:016x}"


def frames(path: Path, number: int) -> list[int]:
    """Where the frames of a segment start, and where the last one ends."""
    starts = [SECTOR]
    data = segment(path, number).read_bytes()
    salt = SEGMENT.unpack_from(data)[6]
    while starts[-1] + SECTOR <= len(data):
        magic, length, *rest = FRAME.unpack_from(data, starts[-1])
        if magic != 0x52465053 or rest[5] != salt:
            break
        starts.append(starts[-1] + length)
    return starts


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


# ---- checksums -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=5000))
def test_crc32c_is_the_one_of_others(data: bytes) -> None:
    assert wheel.crc32c(data) == core.crc32c(data) == core.crc32c_table(data) == crc32c(data)


# ---- another reader --------------------------------------------------------------------------------------------------

key = st.binary(max_size=12)
value = st.one_of(st.binary(max_size=40), st.integers(0, 9000).map(lambda n: b"v" * n))
operation = st.one_of(
    st.tuples(st.just("put"), key, value),
    st.tuples(st.just("erase"), key, st.just(b"")),
    st.tuples(st.just("push"), value, st.just(b"")),
    st.tuples(st.just("pop"), st.just(b""), st.just(b"")),
    st.tuples(st.just("enqueue"), value, st.just(b"")),
    st.tuples(st.just("take"), st.just(b""), st.just(b"")),
)


@settings(max_examples=40)
@given(history=st.lists(operation, max_size=30))
def test_the_reader_finds_what_was_done(
    history: list[tuple[str, bytes, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("store")
    with open_store(path) as store:
        d, s, q = store.sorted_dict("d"), store.stack("s"), store.queue("q")
        for verb, a, b in history:
            if verb == "put":
                d[a] = b
            elif verb == "erase":
                d.pop(a, None)
            elif verb == "push":
                s.push(a)
            elif verb == "pop" and len(s):
                s.pop()
            elif verb == "enqueue":
                q.put(a)
            elif verb == "take":
                q.take(0.0)
        expected = dict(d), [s[i] for i in range(len(s))], dict(q.peek_range(0, 1000))
        last = store.applied_lsn
    records = list(Files(path).records())
    assert [r.lsn for r in records] == list(range(1, last + 1))
    state = replay(records)
    assert (state.maps["d"], state.stacks["s"], state.queues["q"].values()) == expected


def test_the_reader_finds_transactions_and_names(tmp_path: Path) -> None:
    with open_store(tmp_path / "s") as store:
        d = store.dict("d")
        with store.transaction(op_id=(5, 77)) as tx:
            tx[d][b"a"], tx[d][b"b"], tx[d][b""] = b"1", b"2", b""
    records = list(Files(tmp_path / "s").records())
    assert [(r.verb, r.begins, r.ends) for r in records] == [
        ("create", True, True),
        ("put", True, False),
        ("put", False, False),
        ("put", False, True),
    ]
    assert {(r.client, r.client_seq) for r in records[1:]} == {(5, 77)}
    assert [(r.a, r.b) for r in records[1:]] == [(b"a", b"1"), (b"b", b"2"), (b"", b"")]


def test_the_reader_checks_a_checkpoint(tmp_path: Path) -> None:
    with open_store(tmp_path / "s") as store:
        for i in range(300):
            store.dict("d")[b"%d" % i] = b"v" * 500
        store.checkpoint()
        store.dict("d")[b"later"] = b"x"
    files = Files(tmp_path / "s")
    blocks = files.checkpoint()
    magic, lsn = struct.unpack_from("<8sQ", blocks[0])
    assert (magic, lsn) == (b"HEAPA001", files.meta.checkpoint_lsn)
    assert [r.a for r in files.records() if r.lsn > lsn] == [b"later"]
    file = tmp_path / "s" / "ckpt" / f"{files.meta.checkpoint:016x}"
    patch(file, 100_000, bytes([file.read_bytes()[100_000] ^ 1]))
    for read in (files.checkpoint, lambda: open_store(tmp_path / "s")):
        with pytest.raises(StoreCorrupt):
            read()


# ---- another writer --------------------------------------------------------------------------------------------------


def record(lsn: int, verb: int, a: bytes, b: bytes = b"", structure: int = 0) -> bytes:
    pad = [x + bytes(-len(x) % 8) for x in (a, b)]
    body = struct.pack("<IIQQ", len(a), len(b), 0, 0) + b"".join(pad)
    return RECORD.pack(len(body), verb, 3, structure, 0, 0, 0, lsn) + body


def frame(records: list[bytes], first: int, salt: int, chain: int) -> bytes:
    payload = b"".join(records)
    length = (FRAME.size + len(payload) + SECTOR - 1) // SECTOR * SECTOR

    def whole(crc: int) -> bytes:
        head = FRAME.pack(
            0x52465053, length, len(records), len(payload), first, first + len(records) - 1, 1, salt, chain, crc, 0
        )
        return (head + payload).ljust(length, b"\0")

    return whole(wheel.crc32c(whole(0)))


def append(path: Path, records: list[bytes], *, chain: int = 0, salt: int = 0, lsn: int = 0) -> None:
    """Adds a frame written here to a log that the store wrote; what is given is added to what would be right."""
    data = segment(path, 1).read_bytes()
    starts = frames(path, 1)
    header = FRAME.unpack_from(data, starts[-2])
    its_salt = SEGMENT.unpack_from(data)[6]
    added = frame(records, header[5] + 1 + lsn, its_salt + salt, header[9] + chain)
    patch(segment(path, 1), starts[-1], added)


@settings(max_examples=30)
@given(pairs=st.lists(st.tuples(key, st.binary(max_size=6000)), min_size=1, max_size=8))
def test_the_store_reads_what_another_writes(
    pairs: list[tuple[bytes, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = killed(tmp_path_factory.mktemp("store") / "s", 3, 40)
    append(path, [record(5 + i, 3, k, v) for i, (k, v) in enumerate(pairs)])
    assert content(path) == {b"%d" % i: b"%d." % i * 10 for i in range(3)} | dict(pairs)


@pytest.mark.parametrize(
    "bad",
    [
        record(6, 3, b"k", b"v"),  # another operation's number
        record(5, 99, b"k", b"v"),  # an unknown verb
        record(5, 3, b"k", b"v", structure=9),  # a structure that never was
        record(5, 3, b"k", b"v")[:-8],  # shorter than it says
        RECORD.pack(0xFFFFFFF8, 3, 3, 0, 0, 0, 0, 5) + bytes(24),
        RECORD.pack(24, 3, 3, 0, 0, 0, 0, 5) + struct.pack("<IIQQ", 0xFFFFFFFF, 0xFFFFFFFF, 0, 0),
    ],
)
def test_a_whole_frame_of_nonsense_is_refused(bad: bytes, tmp_path: Path) -> None:
    path = killed(tmp_path / "s", 3, 40)
    append(path, [bad])
    before = segment(path, 1).read_bytes()
    with pytest.raises(StoreCorrupt):
        content(path)
    assert segment(path, 1).read_bytes() == before, "a store that cannot be opened was changed"


def test_a_whole_frame_that_does_not_follow(tmp_path: Path) -> None:
    """Of another use of the file it is no frame; of this one, something between is gone."""
    path = killed(tmp_path / "s", 3, 40)
    for name, wrong in {"chain": {"chain": 1}, "gap": {"lsn": 1}, "old": {"salt": 1}}.items():
        shutil.copytree(path, tmp_path / name)
        append(tmp_path / name, [record(5 + wrong.get("lsn", 0), 3, b"k", b"v")], **wrong)
        if name == "old":
            assert sorted(content(tmp_path / name)) == [b"0", b"1", b"2"]
            continue
        for read in (content, lambda folder: list(Files(folder).records())):
            with pytest.raises(StoreCorrupt):
                read(tmp_path / name)


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_a_torn_last_frame_is_dropped_only_where_it_can_be_torn(tmp_path: Path) -> None:
    path = killed(tmp_path / "s", 5)
    at = frames(path, 1)[-2]
    for folder, closed in ((path, False), (tmp_path / "s", True)):
        patch(segment(folder, 1), at + 1000, b"\xff" * 8)
        if closed:
            with pytest.raises(StoreCorrupt, match="closed after"):
                content(folder)
        else:
            assert sorted(content(folder)) == [b"0", b"1", b"2", b"3"]


def test_damage_inside_the_log_is_named(tmp_path: Path) -> None:
    path = killed(tmp_path / "s", 34)
    last = len(list((path / "log").glob("0*")))
    assert last == 3 and len(frames(path, last)) > 3, "the last segment has frames behind its first"
    for number, which in ((1, 2), (1, -2), (2, 0), (last, 0)):
        broken = tmp_path / f"broken-{number}-{which}"
        shutil.copytree(path, broken)
        at = frames(broken, number)[which]
        patch(segment(broken, number), at + 70, b"\xff\xfe")
        with pytest.raises(StoreCorrupt, match=f"log/{number:016x}: .* at byte {at}"):
            content(broken)
        with pytest.raises(StoreCorrupt):
            list(Files(broken).records())


def test_an_old_frame_inside_a_value_is_no_frame(tmp_path: Path) -> None:
    """A torn frame whose value is a copy of the log must not look like damage with operations behind it."""
    path = killed(tmp_path / "s", 3)
    start = frames(path, 1)
    old = segment(path, 1).read_bytes()[start[0] : start[-1]]
    with open_store(path) as store:
        head = FRAME.size + RECORD.size + 24 + 8
        store.dict("d")[b"copy"] = bytes(SECTOR - head) + old
        torn = tmp_path / "torn"
        shutil.copytree(path, torn)
    patch(segment(torn, 1), start[-1] + 200, b"\xff")
    assert sorted(content(torn)) == [b"0", b"1", b"2"]


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    path = killed(tmp_path / "s", 60)
    other = killed(tmp_path / "o", 60)
    last = len(list((path / "log").glob("0*")))
    assert last >= 4

    def broken(change: str) -> Path:
        shutil.copytree(path, tmp_path / change)
        return tmp_path / change

    segment(broken("middle"), 2).unlink()
    segment(broken("first"), 1).unlink()
    shutil.copy(segment(other, 2), segment(broken("foreign"), 2))
    shutil.copy(segment(path, 2), segment(broken("swapped"), 3))
    (broken("lost") / "meta").unlink()
    (broken("zeroed") / "meta").write_bytes(bytes(2 * SECTOR))
    (broken("short") / "meta").write_bytes(b"")
    for change in ("middle", "first", "foreign", "swapped", "lost", "zeroed", "short"):
        files = {
            p.relative_to(tmp_path / change): p.read_bytes() for p in (tmp_path / change).rglob("*") if p.is_file()
        }
        with pytest.raises(StoreCorrupt):
            content(tmp_path / change)
        for name, data in files.items():
            assert (tmp_path / change / name).read_bytes() == data, f"{change}: {name} was changed"


@pytest.mark.parametrize("file", ["meta", "log", "ckpt"])
def test_a_newer_version_is_refused(file: str, tmp_path: Path) -> None:
    with open_store(tmp_path / "s") as store:
        store.dict("d")[b"k"] = b"v"
        store.checkpoint()
    files = Files(tmp_path / "s")
    if file == "meta":
        target, at, size = tmp_path / "s" / "meta", files.meta.generation % 2 * SECTOR, META.size
    elif file == "log":
        target, at, size = segment(tmp_path / "s", files.meta.first_segment), 0, SEGMENT.size
    else:
        target, at, size = tmp_path / "s" / "ckpt" / f"{files.meta.checkpoint:016x}", 0, logreader.HEAD.size
    header = bytearray(target.read_bytes()[at : at + size])
    header[4:8] = (2).to_bytes(4, "little")
    header[-4:] = wheel.crc32c(bytes(header[:-4])).to_bytes(4, "little")
    patch(target, at, bytes(header))
    with pytest.raises(StoreFormat, match="format 2"):
        content(tmp_path / "s")
    with pytest.raises(StoreFormat):
        list(Files(tmp_path / "s").records())
        Files(tmp_path / "s").checkpoint()


def test_store_and_reader_agree_about_damage(tmp_path: Path) -> None:
    path = killed(tmp_path / "s", 12, 200)
    draw = random.Random(3)
    targets = [segment(path, 1)] * 3 + [path / "meta"]
    for i in range(120):
        shutil.copytree(path, tmp_path / "flipped")
        target = draw.choice(targets)
        end = frames(path, 1)[-1] if target.name != "meta" else 2 * SECTOR
        at = draw.randrange(end)
        patch(
            tmp_path / "flipped" / target.relative_to(path),
            at,
            bytes([target.read_bytes()[at] ^ 1 << draw.randrange(8)]),
        )
        try:
            theirs: object = replay(Files(tmp_path / "flipped").records()).maps["d"]
        except StoreError as error:
            theirs = type(error)
        try:
            ours: object = content(tmp_path / "flipped")
        except StoreError as error:
            ours = type(error)
        assert ours == theirs, f"flip {i}: byte {at} of {target.name}"
        shutil.rmtree(tmp_path / "flipped")
