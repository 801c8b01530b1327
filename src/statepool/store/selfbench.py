"""``statepool store bench``: what this machine's disk and this store do together, without peers.

Each line is a rate. The first is the floor, the least that a durable write can cost here: 4 KiB past the page cache
over blocks that are already there. Comparisons with other stores are ``python -m bench store``.
"""

from __future__ import annotations

import mmap
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import statepool.store
from statepool.core.errors import InvalidRequest

_BLOCK, _FILE = 4096, 4 << 20
_KEYS, _BATCH, _ROUND = 20_000, 100, 20


def measure(folder: Path, seconds: float) -> Iterator[tuple[str, float]]:
    """Name and operations per second of each measurement, in a temporary store inside ``folder``.

    Raises:
        InvalidRequest: there is no such folder, or ``seconds`` is not above 0.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"path: {folder} is no folder; name one on the disk to be measured", param="path")
    if seconds <= 0:
        raise InvalidRequest(f"seconds: {seconds} is too short; write a number above 0", param="seconds")
    with tempfile.TemporaryDirectory(prefix="statepool-bench-", dir=folder) as place:
        yield "raw writes of 4 KiB", _floor(Path(place) / "floor", seconds)
        with statepool.store.open(Path(place) / "store", shared=False, capacity="256MiB") as store:
            yield from _store(store, seconds)


def _store(store: statepool.store.Store, seconds: float) -> Iterator[tuple[str, float]]:
    table, value = store.dict("bench"), random.Random(0).randbytes(128)
    keys = [b"%016d" % number for number in range(_KEYS)]
    for start in range(0, _KEYS, 1000):
        table.update((key, value) for key in keys[start : start + 1000])
    draw = random.Random(1)
    drawn = [draw.choice(keys) for _ in range(_KEYS)]
    batches = [dict.fromkeys(drawn[start : start + _BATCH], value) for start in range(0, _KEYS, _BATCH)]

    def put(turn: int) -> int:
        table[drawn[turn % _KEYS]] = value
        return 1

    def put_many(turn: int) -> int:
        batch = batches[turn % len(batches)]
        table.update(batch)
        return len(batch)

    def put_unsynced(turn: int) -> int:
        table.put(drawn[turn % _KEYS], value, durability="process")
        return 1

    def get(turn: int) -> int:
        return 1 if table.get(drawn[turn % _KEYS]) else 0

    yield "durable puts, one per commit", _rate(put, seconds)
    yield f"durable puts, {_BATCH} per commit", _rate(put_many, seconds)
    for threads in (16, 64):
        yield f"durable puts, one per commit, {threads} threads", _crowd(put, seconds, threads)
    yield "puts that survive kill -9", _rate(put_unsynced, seconds)
    store.sync()
    yield "gets", _rate(get, seconds)


def _floor(path: Path, seconds: float) -> float:
    path.write_bytes(bytes(_FILE))
    flags = os.O_WRONLY | os.O_DSYNC
    try:
        file = os.open(path, flags | os.O_DIRECT)
    except OSError:  # tmpfs and others refuse it; the store goes on without it, too
        file = os.open(path, flags)
    try:
        with mmap.mmap(-1, _BLOCK) as block:  # direct writes want an aligned buffer

            def write(turn: int) -> int:
                os.pwrite(file, block, turn * _BLOCK % _FILE)
                return 1

            return _rate(write, seconds)
    finally:
        os.close(file)


def _rate(work: Callable[[int], int], seconds: float) -> float:
    done, started = 0, time.perf_counter()
    for turn in count():
        done += work(turn)
        if turn % _ROUND == 0 and (took := time.perf_counter() - started) >= seconds:
            return done / took
    raise AssertionError("count() has no end")


def _crowd(work: Callable[[int], int], seconds: float, threads: int) -> float:
    """The same from many threads that start together."""
    gate = threading.Barrier(threads)

    def run(number: int) -> float:
        gate.wait()
        return _rate(lambda turn: work(turn + number * 977), seconds)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(run, range(threads)))
