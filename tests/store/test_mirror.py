"""A mirror of a real process: same bytes, takes over without losing what was acknowledged, fences the old primary."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import statepool.store
from statepool.core.errors import Fenced, InvalidRequest, MirrorLost, OutcomeUnknown, StatepoolError, Unavailable

from .net_processes import kill, processes, tcp


def promote(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "statepool.cli", "store", "promote", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def put_until_mirrored(entries: statepool.store.Dict, key: bytes, seconds: float = 30.0) -> None:
    """The first write at the level `mirror` that goes through: the mirror follows."""
    end = time.monotonic() + seconds
    while True:
        try:
            entries.put(key, b"v", durability="mirror")
            return
        except (MirrorLost, OutcomeUnknown):
            assert time.monotonic() < end
            time.sleep(0.05)


def same_frames(one: Path, two: Path) -> bool:
    """Whether all segments both have hold the same bytes."""
    names = {p.name for p in (one / "log").glob("0*")} & {p.name for p in (two / "log").glob("0*")}
    return bool(names) and all((one / "log" / n).read_bytes() == (two / "log" / n).read_bytes() for n in names)


def test_a_mirror_copies_follows_and_catches_up(tmp_path: Path) -> None:
    where = tcp()
    first, copy = tmp_path / "first", tmp_path / "copy"
    with statepool.store.open(first, capacity="64MiB", segment_size="256KiB") as store:
        store.dict("d").update((b"old %d" % i, bytes(300)) for i in range(2000))
        store.checkpoint()
        store.dict("d")[b"after"] = b"checkpoint"
    with processes() as start:
        start("serve", first, "--listen", where)
        mirror = start("mirror", copy, "--of", where)
        with statepool.store.open(where) as store:
            entries = store.dict("d")
            put_until_mirrored(entries, b"m")
            for i in range(20):
                entries.put(b"new %d" % i, bytes(5000), durability="mirror")
            kill(mirror)
            with pytest.raises((MirrorLost, OutcomeUnknown)):
                for _ in range(3):
                    entries.put(b"lost", b"", durability="mirror")
            for i in range(100):
                entries.put(b"meanwhile %d" % i, bytes(9000))
            mirror = start("mirror", copy, "--of", where)
            put_until_mirrored(entries, b"back")
            store.checkpoint()  # the mirror takes it over and lets the older part of its log go
            end = time.monotonic() + 60
            while [p.name for p in (copy / "ckpt").iterdir()] != ["0000000000000002"]:
                assert time.monotonic() < end, "the mirror kept the checkpoint of before"
                entries.put(b"more", b"", durability="mirror")
                time.sleep(0.05)
            put_until_mirrored(entries, b"last")
        assert same_frames(first, copy)
        with pytest.raises(InvalidRequest, match="is the mirror of another"):
            statepool.store.open(copy)
        assert promote(copy, "--force").returncode == 2  # its process runs
        kill(mirror, signal.SIGTERM)
        done = promote(copy, "--force", "--of", where)
        assert done.returncode == 0 and done.stdout.startswith("term 1")
        with pytest.raises(StatepoolError, match="term 1 has begun"):
            statepool.store.open(where, timeout=3.0)
    with statepool.store.open(copy) as store:
        entries = store.dict("d")
        assert len(entries) == 2000 + 1 + 1 + 20 + 100 + 1 + 1 + 1 + (b"lost" in entries)
        assert entries[b"after"] == b"checkpoint" and entries[b"old 1999"] == bytes(300)


class Load(threading.Thread):
    """Pushes numbers at the level `mirror` and remembers which were acknowledged; reconnects by itself."""

    def __init__(self, urls: str, name: str) -> None:
        super().__init__(daemon=True)
        self.store = statepool.store.open(urls, durability="mirror", timeout=40.0)
        self.stack = self.store.stack(name)
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.stop = threading.Event()
        self.start()

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                self.stack.push(b"%d" % number)
            except OutcomeUnknown:
                self.unknown.append(number)
            except (MirrorLost, Unavailable, Fenced):
                time.sleep(0.02)
            else:
                self.acknowledged.append(number)
        self.store.close()


def check(load: Load, url: str, name: str) -> None:
    """Everything acknowledged is there once; what is there beside it is of unknown outcome."""
    with statepool.store.open(url) as store:
        stack = store.stack(name)
        found = [int(stack[i]) for i in range(len(stack))]
    assert len(set(found)) == len(found)
    assert set(load.acknowledged) <= set(found)
    assert set(found) - set(load.acknowledged) <= set(load.unknown)


def test_the_mirror_takes_over_with_a_witness(tmp_path: Path) -> None:
    first_url, second_url, witness_url = tcp(), tcp(), tcp()
    lease = ["--witness", witness_url, "--lease", "1"]
    first, second = tmp_path / "first", tmp_path / "second"
    with processes() as start:
        start("witness", tmp_path / "w", "--listen", witness_url, "--lease", "1")
        primary = start("serve", first, "--listen", first_url, "--capacity", "64MiB", *lease)
        mirror = start("mirror", second, "--of", first_url)
        with statepool.store.open(first_url) as store:
            put_until_mirrored(store.dict("d"), b"first")
        both = f"{first_url},{second_url}"
        loads = [Load(both, f"load {i}") for i in range(3)]
        time.sleep(1.5)
        kill(primary)
        counts = [len(load.acknowledged) for load in loads]
        assert all(counts)
        kill(mirror)
        done = promote(second, "--witness", witness_url)
        assert done.returncode == 0, done.stderr
        start("serve", second, "--listen", second_url, *lease)
        # The old primary finds out that its reign is over, and becomes the mirror of the new one.
        primary = start("serve", first, "--listen", first_url, *lease)
        with pytest.raises(StatepoolError, match=r"its term 0 is over|cannot renew"):
            statepool.store.open(first_url, timeout=3.0)
        time.sleep(0.5)
        kill(primary)
        refused = subprocess.run(
            [sys.executable, "-m", "statepool.cli", "store", "serve", str(first), "--listen", first_url, *lease],
            capture_output=True,
            text=True,
        )
        assert refused.returncode == 2 and "term 1 has begun" in refused.stderr
        start("mirror", first, "--of", second_url)
        with statepool.store.open(second_url) as store:
            put_until_mirrored(store.dict("d"), b"second")
        time.sleep(1.0)
        for load in loads:
            load.stop.set()
        for load, count in zip(loads, counts, strict=True):
            load.join(60)
            assert len(load.acknowledged) > count
            check(load, second_url, load.stack.name)


def test_a_primary_cut_off_from_its_witness_stops(tmp_path: Path) -> None:
    url, witness_url = tcp(), tcp()
    with processes() as start:
        witness = start("witness", tmp_path / "w", "--listen", witness_url, "--lease", "1")
        start("serve", tmp_path / "s", "--listen", url, "--capacity", "64MiB", "--witness", witness_url, "--lease", "1")
        with statepool.store.open(url, timeout=3.0) as store:
            entries = store.dict("d")
            entries[b"k"] = b"v"
            kill(witness)
            time.sleep(1.2)
            with pytest.raises((Unavailable, OutcomeUnknown), match="renew its lease"):
                entries[b"k"] = b"w"
            start("witness", tmp_path / "w", "--listen", witness_url, "--lease", "1")
            time.sleep(1.0)
            entries[b"k"] = b"x"
            assert entries[b"k"] == b"x"


def test_a_witness_does_not_let_a_stranger_take_over(tmp_path: Path) -> None:
    url, witness_url = tcp(), tcp()
    with processes() as start:
        start("witness", tmp_path / "w", "--listen", witness_url, "--lease", "0.5")
        start("serve", tmp_path / "s", "--listen", url, "--capacity", "64MiB")  # never asked the witness
        mirror = start("mirror", tmp_path / "m", "--of", url)
        with statepool.store.open(url) as store:
            put_until_mirrored(store.dict("d"), b"k")
        kill(mirror)
        done = promote(tmp_path / "m", "--witness", witness_url)
        assert done.returncode == 2 and "may lack acknowledged operations" in done.stderr
        assert promote(tmp_path / "s", "--force").returncode == 2
