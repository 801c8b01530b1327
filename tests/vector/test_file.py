"""Files of an index: in place, atomic, and never silently damaged."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import crc32c as wheel
import numpy as np
import pytest
from tests.vector.synthetic import clustered

import statepool.vector as vector
from statepool.core.errors import InvalidRequest
from statepool.vector import Index, IndexCorruptError, ReadOnlyError, verify

K = 10
BLOCK = 1 << 16


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return clustered(4000, 40, 50)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "sealed"])
def saved(request: pytest.FixtureRequest, data, tmp_path_factory) -> tuple[Index, Path]:
    index = Index(40, "cos", R=32, build_window=40)
    index.build(data[0], ids=np.arange(len(data[0])) * 3 + 5)
    if request.param:
        index.seal()
    path = tmp_path_factory.mktemp("index") / "index"
    index.save(path)
    return index, path


def same(one: Index, other: Index, queries: np.ndarray) -> None:
    for query in queries:
        left, right = one.search(query, K, 40), other.search(query, K, 40)
        np.testing.assert_array_equal(left.ids, right.ids)
        assert left.distances.tobytes() == right.distances.tobytes()
        assert left.stats == right.stats
        np.testing.assert_array_equal(one.exact(query, K).ids, other.exact(query, K).ids)


@pytest.mark.parametrize(
    "how",
    [{}, {"verify": "full"}, {"verify": "off"}, {"mmap": False}, {"mode": "rw"}],
    ids=["lazy", "full", "off", "read", "rw"],
)
def test_opened_index_answers_with_the_same_bits(saved, data, how) -> None:
    index, path = saved
    opened = vector.open(path, **how)
    assert len(opened) == len(index)
    same(index, opened, data[1])


def test_checksums_are_crc32c_of_the_blocks(saved) -> None:
    raw = saved[1].read_bytes()
    begin = int.from_bytes(raw[-24:-16], "little")
    sums = np.frombuffer(raw[begin:-32], "<u4")
    assert sums.tolist() == [wheel.crc32c(raw[at : min(at + BLOCK, begin)]) for at in range(4096, begin, BLOCK)]
    assert wheel.crc32c(raw[:4092]) == int.from_bytes(raw[4092:4096], "little")
    assert verify(saved[1]).ok
    assert verify(saved[1]).rows == 4000


def test_read_only_and_rewritable(saved, data, tmp_path: Path) -> None:
    index, path = saved
    opened = vector.open(path)
    with pytest.raises(ReadOnlyError, match="make a new Index"):
        opened.build(data[0])
    with pytest.raises(ReadOnlyError):
        opened.seal()
    with vector.open(shutil.copy(path, tmp_path / "own"), "rw") as other:
        gone = int(index.ids()[7])
        assert other.delete([gone]) == 1
        other.save(tmp_path / "copy")
    copy = vector.open(tmp_path / "copy")
    assert len(copy) == len(index) - 1
    assert gone not in copy


def damage(raw: bytes, dice: random.Random) -> bytes:
    """A flip, a run of zeros or ones, a cut end, or a wrong number in the header; never the same bytes."""
    found = bytearray(raw)
    kind = dice.randrange(5)
    at = dice.randrange(len(raw))
    if kind == 0:
        found[at] ^= 1 << dice.randrange(8)
    elif kind in (1, 2):
        end = min(len(raw), at + dice.randrange(1, 5000))
        found[at:end] = (b"\0" if kind == 1 else b"\xff") * (end - at)
    elif kind == 3:
        del found[at:]
    else:
        found[dice.randrange(300)] = dice.randrange(256)
    return bytes(found)


def detected(path: Path, queries: np.ndarray) -> bool:
    """Whether anything that reads the whole file says so: a full open, a verify, and lazy searches of all rows."""
    try:
        report = verify(path)
    except IndexCorruptError:
        report = None
    try:
        vector.open(path, verify="full")
        full = False
    except IndexCorruptError as error:
        full = error.offset >= 0 and bool(error.section)
    assert full == (report is None or not report.ok)
    try:
        opened = vector.open(path)
        for query in queries:
            opened.search(query, K, 40)
            opened.exact(query, K)
    except IndexCorruptError:
        assert full, "found by a search and by nobody else"
    return full


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_every_corruption_is_detected(saved, data, tmp_path: Path, count: int) -> None:
    raw = saved[1].read_bytes()
    path = tmp_path / "damaged"
    dice = random.Random(count)
    tried = 0
    while tried < count:
        bad = damage(raw, dice)
        if bad == raw:
            continue
        tried += 1
        path.write_bytes(bad)
        assert detected(path, data[1][:3]), f"corruption {tried} went unseen"


@pytest.mark.parametrize("seal", [False, True], ids=["plain", "sealed"])
def test_lazy_sees_damage_only_where_it_looks(tmp_path: Path, seal: bool) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((6000, 200)).astype(np.float32)
    rows[3000:] += 100  # another country
    index = Index(200, "l2", R=32, build_window=40)
    index.build(rows)
    if seal:
        index.seal()
    path, name = tmp_path / "index", "sealed" if seal else "rows"
    index.save(path)
    whole = path.read_bytes()
    section = vector.open(path)._file.sections[name]
    per_row = section.nbytes // section.shape[0]
    answered = 0
    for node in range(3500, 6000, 500):
        raw = bytearray(whole)
        raw[section.offset + node * per_row] ^= 1
        path.write_bytes(raw)
        opened = vector.open(path)
        try:
            for query in rows[:20]:
                np.testing.assert_array_equal(opened.search(query, K, 16).ids, index.search(query, K, 16).ids)
            answered += 1
        except IndexCorruptError as error:
            assert error.section == name
        with pytest.raises(IndexCorruptError, match=name) as caught:
            opened.search(rows[node], 1, 32)
        assert caught.value.section == name
        assert caught.value.offset <= section.offset + node * per_row < caught.value.offset + BLOCK
    assert answered > 0


def test_a_crafted_link_is_no_crash(saved, data, tmp_path: Path) -> None:
    index, source = saved
    name = "links" if index._core.sealed() is None else "sealed"
    raw = bytearray(source.read_bytes())
    section = vector.open(source)._file.sections[name]
    begin = int.from_bytes(raw[-24:-16], "little")
    span = slice(section.offset, section.offset + section.nbytes)
    rows = np.frombuffer(bytes(raw[span]), section.dtype).reshape(section.shape).copy()
    if name == "links":
        rows[:, 0] = 4_000_000_000
    else:
        last = (rows.shape[1] - 128) if rows.shape[1] % 64 == 0 else 0
        for start in range(0, rows.shape[1] - 128 + 1, 4):  # wherever the 32 ids lie in the row
            ids = rows[0, start : start + 128].view("<u4")
            if ((ids < 4000) | (ids == 0xFFFFFFFF)).all() and len(set(ids.tolist())) > 20:
                last = start
        rows[:, last : last + 4] = np.frombuffer(np.uint32(4_000_000_000).tobytes(), np.uint8)
    raw[span] = rows.tobytes()
    sums = b"".join(
        wheel.crc32c(bytes(raw[at : min(at + BLOCK, begin)])).to_bytes(4, "little") for at in range(4096, begin, BLOCK)
    )
    raw[begin:-32] = sums
    raw[-32:-28] = wheel.crc32c(sums).to_bytes(4, "little")
    path = tmp_path / "crafted"
    path.write_bytes(raw)
    opened = vector.open(path)
    with pytest.raises(IndexCorruptError, match=name):
        opened.search(data[1][0], K, 40)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "0 bytes"), (b"x" * 100, "100 bytes"), (b"x" * 9000, "does not begin like an index")],
)
def test_what_is_no_index(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(IndexCorruptError, match=says):
        vector.open(path)


def test_a_newer_format_is_named(saved, tmp_path: Path) -> None:
    raw = bytearray(saved[1].read_bytes())
    raw[8] = 2
    raw[4092:4096] = wheel.crc32c(bytes(raw[:4092])).to_bytes(4, "little")
    path = tmp_path / "newer"
    path.write_bytes(raw)
    with pytest.raises(InvalidRequest, match="format 2; this version reads 1"):
        vector.open(path)


def test_places_that_cannot_be_written(saved, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot write"):
        saved[0].save(tmp_path / "missing" / "index")
    with pytest.raises(FileNotFoundError):
        vector.open(tmp_path / "missing")


SAVER = """
import sys, numpy as np
from statepool.vector import Index
rng = np.random.default_rng(int(sys.argv[2]))
index = Index(32, "l2", R=16, build_window=16)
index.build(rng.standard_normal((3000, 32)))
print("ready", flush=True)
while True:
    index.save(sys.argv[1])
"""


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_save_leaves_a_whole_file(tmp_path: Path, count: int) -> None:
    path = tmp_path / "index"
    dice = random.Random(count)
    for number in range(count):
        with subprocess.Popen([sys.executable, "-c", SAVER, str(path), str(number)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(dice.uniform(0.0, 0.05))
            os.kill(child.pid, signal.SIGKILL)
        if path.exists():
            assert len(vector.open(path, verify="full")) == 3000
    assert path.exists()
