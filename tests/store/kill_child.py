"""Forks processes that use a store until they are killed. Run by test_kill.py; one JSON request a line.

A request: path, acks (file that gets "number level" once that write has returned), and either
point (a named persist point, see persist_point.h) or seconds (until SIGKILL). The answer: the child's wait status.
A child that has written 5,000 entries without reaching its point gives up.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import statepool.store
from statepool.core.errors import StatepoolError


def open_store(path: str | Path, **options: Any) -> statepool.store.Store:
    """Whoever opens the folder first makes the store, be it the test after a kill before there was one."""
    return statepool.store.open(path, capacity="8MiB", segment_size="64KiB", checkpoint_every="256KiB", **options)


def work(path: str, acks: int) -> None:
    """Write numbered entries to four structures at once, with checkpoints, reopening and failing transactions."""
    store = open_store(path)
    newest = store.sorted_dict("t").last()
    first = 1 if newest is None else int(newest[0]) + 1
    for i in range(first, first + 5000):
        level = "process" if i % 3 else "power"
        with store.transaction(durability=level) as tx:  # type: ignore[arg-type]
            tx[store.dict("d")][b"%d" % (i % 50)] = b"%d" % i * (1 + i % 300)
            tx[store.sorted_dict("t")][b"%08d" % i] = b"%d" % i
            tx[store.queue("q")].put(b"%d" % i)
            tx[store.stack("s")].push(b"%d" % i)
        os.write(acks, b"%d %s\n" % (i, level.encode()))
        if i % 5 == 0:
            store.queue("q").take(0.0)
        if i % 4 == 0:
            fail(store)
        if i % 20 == 0:
            store.checkpoint()
        if i % 31 == 0:
            store.close()
            # Recycled segments would serve for ever, and no new one be made.
            for spare in Path(path, "log").glob("spare*"):
                spare.unlink()
            store = open_store(path)


def fail(store: statepool.store.Store) -> None:
    """A transaction that erases, puts and then finds no room: it must leave nothing behind."""
    try:
        with store.transaction(durability="power") as tx:
            for key in range(50):
                del tx[store.dict("d")][b"%d" % key]
                tx[store.dict("d")][b"x%d" % key] = b"never" * 40
            tx[store.dict("d")][b"huge"] = b"never" * (2 << 20)
    except (StatepoolError, KeyError):
        return
    raise AssertionError("there is room for what must not fit")


def child(request: dict[str, Any]) -> None:
    if "point" in request:
        os.environ["STATEPOOL_STORE_KILL_AT"] = request["point"]
    work(request["path"], os.open(request["acks"], os.O_WRONLY | os.O_CREAT | os.O_APPEND))


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                child(request)
            finally:
                os._exit(3)  # nobody killed it
        if "seconds" in request:
            time.sleep(request["seconds"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
