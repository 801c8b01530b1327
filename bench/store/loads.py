"""The timed loops, run in the process of the store under measurement.

Every loop prepares its keys and values before the clock starts, and looks at the clock only after a chunk of work.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from bench.store import data
from bench.store.systems.base import MAIN, Pair, Planned, Session

Timed = tuple[int, float]
"""Operations done and the seconds they took."""
Plan = Callable[[random.Random], Planned]

_CHUNK = 50
_CHUNKS = 200
_READS = 1000
_PLANNED = 20_000


def put_one(session: Session, keys: Sequence[bytes], seconds: float, seed: int) -> Timed:
    """One put per commit."""
    put = session.put

    def work(chunk: list[Pair]) -> None:
        for key, value in chunk:
            put(key, value)

    chunks = list(data.commits(data.pairs(keys, _CHUNK * _CHUNKS, seed), _CHUNK))
    return _repeat(work, chunks, _CHUNK, seconds)


def put_many(session: Session, keys: Sequence[bytes], seconds: float, seed: int, batch: int) -> Timed:
    """``batch`` puts per commit."""
    chunks = list(data.commits(data.pairs(keys, batch * _CHUNKS, seed), batch))
    return _repeat(session.put_many, chunks, batch, seconds)


def get(session: Session, keys: Sequence[bytes], seconds: float, seed: int, table: str = MAIN) -> Timed:
    """Single gets of keys that are there."""
    wanted = data.drawn(keys, _READS * 20, seed)
    chunks = [wanted[start : start + _READS] for start in range(0, len(wanted), _READS)]
    with session.getter(table) as read:

        def work(chunk: list[bytes]) -> None:
            for key in chunk:
                read(key)

        if read(wanted[0]) is None:
            raise LookupError("a key that was written is not found")
        return _repeat(work, chunks, _READS, seconds)


def queue(session: Session, seconds: float, seed: int, batch: int) -> Timed:
    """Items put, taken and acknowledged, ``batch`` at a time."""
    items = data.values(batch * _CHUNKS, seed)
    chunks = [items[start : start + batch] for start in range(0, len(items), batch)]

    def work(chunk: list[bytes]) -> None:
        passed = session.pass_through(chunk)
        if passed != batch:
            raise LookupError(f"{passed} of {batch} queue items came out")

    return _repeat(work, chunks, batch, seconds)


def _repeat(work: Callable[[Any], object], chunks: Sequence[Any], size: int, seconds: float) -> Timed:
    done, started = 0, time.perf_counter()
    end = started + seconds
    for chunk in cycle(chunks):
        work(chunk)
        done += size
        now = time.perf_counter()
        if now >= end:
            break
    return done, now - started


def puts(sessions: Sequence[Session], keys: Sequence[bytes], seconds: float, seed: int) -> Timed:
    """One put per commit from as many threads as there are sessions."""
    prepared = [iter(cycle(data.pairs(keys, 2000, seed * 100 + place))) for place in range(len(sessions))]

    def job(place: int, stopped: list[bool]) -> int:
        put, done = sessions[place].put, 0
        for key, value in prepared[place]:
            put(key, value)
            done += 1
            if stopped:
                break
        return done

    return _together(job, len(sessions), seconds)


def steps(sessions: Sequence[Session], plan: Plan, seconds: float, seed: int) -> Timed:
    """Transactions drawn by ``plan``, from as many threads as there are sessions."""
    prepared = []
    for place in range(len(sessions)):
        draw = random.Random(seed * 100 + place)
        prepared.append(cycle([plan(draw) for _ in range(_PLANNED // len(sessions))]))

    def job(place: int, stopped: list[bool]) -> int:
        session, done = sessions[place], 0
        for planned in prepared[place]:
            planned(session)
            done += 1
            if stopped:
                break
        return done

    return _together(job, len(sessions), seconds)


def _together(job: Callable[[int, list[bool]], int], count: int, seconds: float) -> Timed:
    """Run ``job`` in ``count`` threads that start together, until the time is over; each ends what it began."""
    stopped: list[bool] = []
    done: deque[int] = deque()
    errors: deque[BaseException] = deque()
    gate = threading.Barrier(count + 1)

    def run(place: int) -> None:
        gate.wait()
        try:
            done.append(job(place, stopped))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    time.sleep(seconds)
    stopped.append(True)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(done), time.perf_counter() - started
