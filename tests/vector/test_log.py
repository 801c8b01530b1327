"""What survives: every acknowledged change, after kills at any place, lost power, and damage."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import crc32c as wheel
import numpy as np
import pytest
from tests.vector.crash import FIRST, history, row, states

from statepool.core.errors import InvalidRequest, StoreFull, StoreLocked, StoreReadOnly
from statepool.vector import (
    Index,
    IndexCorruptError,
    LiveIndex,
    ReadOnlyError,
    open,  # noqa: A004 - the name users know from files
)
from statepool.vector.log import log_path, read

HEAD, RECORD = 20, 28


def made(folder: Path) -> Path:
    index = Index(8, "l2", R=16, build_window=16, columns={"version": "i64"})
    index.build(np.stack([row(one, 0) for one in range(FIRST)]), columns={"version": [0] * FIRST})
    index.save(folder / "index")
    return folder / "index"


def state(index: Index | LiveIndex) -> dict[int, int]:
    """Version of every row, told by its vector and by its column; each row is there once and is found."""
    ids = index.ids().tolist()
    assert len(ids) == len(set(ids)) == len(index)
    found: dict[int, int] = {}
    everything = index.exact(np.zeros(8), max(1, len(ids) + 5))
    assert sorted(everything.ids.tolist()) == sorted(ids)
    vectors = index.get(ids)
    for one, vector in zip(ids, vectors, strict=True):
        versions = [v for v in range(61) if np.array_equal(vector, row(one, v))]
        assert len(versions) == 1, f"{one} is a row that nobody wrote"
        found[one] = versions[0]
        again = index.search(vector, 1, 64, filter={"version": versions[0]})
        assert again.ids.tolist() == [one]
    return found


def crash(folder: Path, **options: Any) -> None:
    """Run `crash.py` there and compare what every run left with what was acknowledged."""
    made(folder)
    given = {"seed": 0, "length": 12, "first": 1, "runs": 10**6, "how": "effects", "power": False, "level": "power"}
    given |= options
    script = Path(__file__).with_name("crash.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(folder), json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    truth = states(history(given["seed"], given["length"]))
    runs = [path for path in folder.iterdir() if path.is_dir()]
    assert len(runs) > min(20, given["runs"] - 1)
    for run in runs:
        acks = (run / "acks").read_bytes() if (run / "acks").exists() else b""
        acked = acks.count(b"+")
        least = acked if given["level"] == "power" or not given["power"] else 0
        known = truth[least : acked + 2]
        assert state(open(run / "index")) in known, f"run {run.name} after {acked} operations"
        with open(run / "index", "rw") as index:
            assert state(index) in known
            index.add(row(10_000, 1)[None], [10_000], columns={"version": [1]})
        reopened = open(run / "index")
        assert 10_000 in reopened
        assert {one: v for one, v in state(reopened).items() if one != 10_000} in known


def test_killed_at_every_effect_of_a_history(tmp_path: Path) -> None:
    crash(tmp_path, seed=6, length=5)


def test_power_lost_at_every_effect_of_a_history(tmp_path: Path) -> None:
    crash(tmp_path, seed=4, length=5, power=True)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("level", "power"), [("power", False), ("power", True), ("process", False), ("process", True)])
def test_killed_at_every_effect_of_long_histories(tmp_path: Path, level: str, power: bool) -> None:
    for seed in range(10, 13):
        (tmp_path / str(seed)).mkdir()
        crash(tmp_path / str(seed), seed=seed, length=25, power=power, level=level)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_two_hundred_moments(tmp_path: Path) -> None:
    crash(tmp_path, seed=7, length=60, how="moments", runs=200, seconds=0.4, level="process")


def test_threads_that_add_at_once_are_all_in_the_log(tmp_path: Path) -> None:
    path = made(tmp_path)
    with open(path, "rw") as index:

        def write(first: int) -> None:
            for one in range(first, first + 40):
                index.add(row(one, 1)[None], [one], columns={"version": [1]})
                index.update([one], row(one, 2)[None], columns={"version": [2]})
                if one % 4 == 0:
                    index.delete([one])

        threads = [threading.Thread(target=write, args=(1000 * (n + 1),)) for n in range(4)]
        for thread in threads:
            thread.start()
        index.compact()
        for thread in threads:
            thread.join()
        before = state(index)
    assert state(open(path)) == before
    assert sum(version == 2 for version in before.values()) == 4 * 30


def test_changes_of_one_row_are_logged_in_the_order_they_were_made(tmp_path: Path) -> None:
    path = made(tmp_path)
    with open(path, "rw", durability="process") as index:

        def write(version: int) -> None:
            for _ in range(15):
                index.update([3], row(3, version)[None], columns={"version": [version]})

        threads = [threading.Thread(target=write, args=(n,)) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        now = state(index)[3]
    assert state(open(path))[3] == now


def test_the_format_read_by_other_means(tmp_path: Path) -> None:
    path = made(tmp_path)
    with open(path, "rw") as index:
        index.add(row(100, 1)[None], [100], columns={"version": [1]})
        index.delete([100, 5])
    raw = log_path(path).read_bytes()
    assert raw[:8] == b"SPVLOG\r\n"
    length, crc = int.from_bytes(raw[12:16], "little"), int.from_bytes(raw[16:20], "little")
    head = json.loads(raw[HEAD : HEAD + length])
    assert wheel.crc32c(raw[HEAD : HEAD + length]) == crc
    assert head["before"] == 0
    at, kinds = HEAD + length, []
    for lsn in range(1, 4):
        size, kind = int.from_bytes(raw[at : at + 4], "little"), int.from_bytes(raw[at + 4 : at + 6], "little")
        assert int.from_bytes(raw[at + 8 : at + 16], "little") == lsn
        assert int.from_bytes(raw[at + 16 : at + 24], "little") == at, "each was durable before the next"
        body = raw[at + RECORD : at + RECORD + size]
        assert wheel.crc32c(raw[at : at + 24] + body) == int.from_bytes(raw[at + 24 : at + 28], "little")
        kinds.append(kind)
        at += RECORD + size
    assert kinds == [1, 3, 0]
    assert at == len(raw)


def test_damage_is_told_from_a_torn_end(tmp_path: Path) -> None:
    """Every byte of the log: flipped in a closed log it is damage; cut off there, only the last records are gone."""
    path = made(tmp_path)
    index = open(path, "rw")
    for one in range(100, 104):
        index.add(row(one, 1)[None], [one], columns={"version": [1]})
    left = log_path(path).read_bytes()  # as a killed process leaves it
    index.close()
    whole = log_path(path).read_bytes()
    replay = read(log_path(path))
    ends = [replay.end - RECORD]
    last = whole.rindex(left[-30:]) + 30
    assert last == ends[0]
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        log_path(path).write_bytes(damaged)
        if at < last:
            with pytest.raises((IndexCorruptError, InvalidRequest)):
                open(path)
        else:
            assert len(open(path)) == FIRST + 4  # the mark of a good close holds nothing
    for end in range(len(left) - 300, len(left)):
        log_path(path).write_bytes(left[:end])
        assert FIRST + 1 <= len(open(path)) <= FIRST + 3
    log_path(path).write_bytes(left[:-5])
    with open(path, "rw") as again:
        assert again.stats()["torn_bytes"] > 0
        assert again.stats()["replayed"] == 3
        assert 103 not in again


@pytest.mark.slow
def test_five_hundred_damages_of_log_and_columns(tmp_path: Path) -> None:
    path = made(tmp_path)
    with open(path, "rw") as index:
        index.add(np.stack([row(one, 1) for one in range(50, 90)]), range(50, 90), columns={"version": [1] * 40})
        index.compact()
        index.add(np.stack([row(one, 2) for one in range(90, 130)]), range(90, 130), columns={"version": [2] * 40})
    good, dice = {name: name.read_bytes() for name in (path, log_path(path))}, random.Random(1)
    for _ in range(500):
        name = dice.choice(list(good))
        raw = bytearray(good[name])
        end = len(raw) - (RECORD if name != path else 0)
        at = dice.randrange(end)
        size = dice.choice([1, 1, 100, 5000])
        before = bytes(raw[at:end][:size])
        raw[at : at + len(before)] = bytes(b ^ 255 for b in before) if dice.random() < 0.5 else bytes(len(before))
        if bytes(raw) == good[name]:
            continue
        name.write_bytes(raw)
        with pytest.raises((IndexCorruptError, InvalidRequest)):
            state(open(path, verify="full"))
        name.write_bytes(good[name])
    assert len(state(open(path))) == 120


def test_one_writer_and_many_readers(tmp_path: Path) -> None:
    path = made(tmp_path)
    with open(path, "rw") as index:
        with pytest.raises(StoreLocked, match="has a writer already"):
            open(path, "rw")
        code = f"import statepool.vector as v; v.open({str(path)!r}, 'rw')"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "StoreLocked" in other.stderr
        with pytest.raises(StoreLocked):
            made(tmp_path)
        index.delete([0])
        reader = open(path)
        assert 0 not in reader
        for change in (lambda: reader.delete([1]), reader.compact, lambda: reader.save(path)):
            with pytest.raises(ReadOnlyError, match="open it with mode 'rw'"):
                change()
        index.delete([1])
        assert 1 in reader
        assert 1 not in open(path)
        index.compact()
        assert 1 in reader
    with pytest.raises(StoreReadOnly, match="the index is closed; reopen"):
        index.delete([2])
    assert 2 in index
    with open(path, "rw") as again:
        again.delete([2])


def test_a_file_saved_anew_drops_the_log_of_the_old_one(tmp_path: Path) -> None:
    path = made(tmp_path)
    with open(path, "rw") as index:
        index.delete([0])
    made(tmp_path)
    assert 0 in open(path)
    with open(path, "rw") as index:
        index.delete([0])
    log = log_path(path).read_bytes()
    other = Index(8, "l2", R=16, build_window=16)
    other.build(np.eye(8))
    other.save(path)
    log_path(path).write_bytes(log)
    with pytest.raises(IndexCorruptError, match="belongs to another index"):
        open(path)


def test_all_rows_may_go(tmp_path: Path) -> None:
    path = made(tmp_path)
    with open(path, "rw") as index:
        index.delete(range(FIRST))
        assert len(index.search(row(0, 0), 3).ids) == 0
        index.compact()
        assert len(index) == 0
        index.add(row(7, 1)[None], [7], columns={"version": [1]})
    assert state(open(path)) == {7: 1}


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path)
    real = os.pwrite
    with open(path, "rw") as index:

        def half(handle: int, data: bytes, offset: int) -> int:
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return real(handle, data[: len(data) // 2], offset)

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(StoreFull, match="the disk is full; nothing was changed"):
            index.add(row(50, 1)[None], [50], columns={"version": [1]})
        monkeypatch.undo()
        assert 50 not in index
        index.add(row(51, 1)[None], [51], columns={"version": [1]})
    after = state(open(path))
    assert 50 not in after
    assert after[51] == 1


def test_levels_are_named() -> None:
    index = LiveIndex(8)
    with pytest.raises(InvalidRequest, match="durability: this index has no log"):
        index.add(np.ones((1, 8)), [1], durability="power")


def test_an_unknown_level_changes_nothing(tmp_path: Path) -> None:
    with open(made(tmp_path), "rw") as index:
        with pytest.raises(InvalidRequest, match="durability: 'always' is none of process, power"):
            index.delete([1], durability="always")
        assert 1 in index
