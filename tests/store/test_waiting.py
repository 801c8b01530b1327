"""Threads that wait for the disk together: none is forgotten, none is told too early, all hear of a failure."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import statepool.store
from statepool.core.errors import OutcomeUnknown, StatepoolError, StoreReadOnly

from .stores import in_child

SMALL = {"capacity": "32MiB", "segment_size": "64KiB"}


def together(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Runs `work(0)` … in threads and returns what they raised; nobody may still be waiting after a minute."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert not any(thread.is_alive() for thread in threads), "somebody was never woken"
    return errors


def test_every_waiter_is_woken_and_none_too_early(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path, **SMALL) as store:
        d, queue = store.dict("d"), store.queue("q")

        def work(number: int) -> None:
            draw = random.Random(number)
            for i in range(60):
                key = b"%d-%d" % (number, i)
                if draw.random() < 0.3:
                    d.put(key, b"v", durability="process")
                    lsn = store.applied_lsn
                    if draw.random() < 0.5:
                        store.wait(lsn)
                        assert store.durable_lsn >= lsn
                else:
                    d[key] = b"v"
                if draw.random() < 0.2:
                    queue.put(key)
                    store.sync()
                if draw.random() < 0.2:
                    before = store.applied_lsn
                    with store.transaction() as tx:
                        tx[d][key] = b"w"
                    assert store.durable_lsn > before

        assert together(24, work) == []
        assert len(d) == 24 * 60


def test_who_comes_last_is_not_forgotten(tmp_path: Path) -> None:
    """Threads end after one write each: nobody comes after them who would ask for the frame of those who still wait."""
    with statepool.store.open(tmp_path, **SMALL) as store:
        d = store.dict("d")
        for turn in range(300):

            def work(number: int, turn: int = turn) -> None:
                time.sleep(random.Random(turn * 100 + number).random() * 0.0006)
                d[b"%d-%d" % (turn, number)] = b"v"

            assert together(16, work) == []
        assert len(d) == 300 * 16


def test_all_who_wait_hear_that_the_disk_failed(tmp_path: Path) -> None:
    """A limit on file sizes makes the next segment fail while many threads wait for it."""

    def act() -> None:
        store = statepool.store.open(tmp_path / "s", shared=False, **SMALL)
        d = store.dict("d")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 10, resource.RLIM_INFINITY))

        def work(number: int) -> None:
            for i in range(100_000):
                d[b"%d-%d" % (number, i)] = b"v" * 200

        errors = together(16, work)
        assert len(errors) == 16
        assert {type(error) for error in errors} <= {OutcomeUnknown, StoreReadOnly}
        assert OutcomeUnknown in {type(error) for error in errors}
        with contextlib.suppress(StatepoolError):
            store.close()

    assert in_child(act) == 0


def test_a_full_ring_is_emptied_while_others_wait(tmp_path: Path) -> None:
    """Who finds no room waits with the interpreter lock in hand: not behind a thread that was woken and needs it."""
    with statepool.store.open(tmp_path, shared=False, capacity="256MiB") as store:
        d = store.dict("d")
        large = bytes(12 << 20)  # the ring holds five

        def work(number: int) -> None:
            if number < 2:
                for i in range(8):
                    d.put(b"large %d-%d" % (number, i % 3), large, durability="process")
            else:
                for i in range(150):
                    d[b"%d-%d" % (number, i)] = b"v"

        assert together(12, work) == []
        assert len(d) == 2 * 3 + 10 * 150
