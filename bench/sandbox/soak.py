"""T23: mixed load for a long time, some of it with faults, and what has grown in the end.

``STATEPOOL_SOAK_SECONDS`` sets how long (600 by default; the brief's goal is six hours).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox.measure import row, wanted
from statepool.core.errors import StatepoolError
from statepool.sandbox import Pool, Sandbox

_FAULT = 0.01
_WORK = (
    lambda one: one.run_code("sum(range(1000))").text == "499500",
    lambda one: one.commands.run("seq 1000 | tail -1").stdout == "1000\n",
    lambda one: one.files.write("a/b", b"x" * 5000).size == one.files.info("a/b").size == 5000,
    lambda one: one.run_code("raise KeyError('k')").error.name == "KeyError",
    lambda one: _back(one),
    lambda one: _kid(one),
)


_LEAVE = "import subprocess\nsubprocess.Popen(['setsid', 'sleep', '1000'])"
"""Last of what a tenant does: with a process that runs no moment could be kept."""


def _back(one: Sandbox) -> bool:
    one.run_code("x = 1")
    with one.snapshot() as moment:
        one.run_code("x = 2")
        one.rollback(moment)
    return one.run_code("x").text == "1"


def _kid(one: Sandbox) -> bool:
    one.run_code("y = 5")
    (kid,) = one.fork(1)
    with kid:
        return kid.run_code("y + 1").text == "6"


def _faults(pool: Pool, one: Sandbox, kind: int) -> None:
    """A tenant that crashes, one that is never done, PID 1 or the template's process killed from outside."""
    if kind == 0:
        one.run_code("import os\nos._exit(3)")
    elif kind == 1:
        one.run_code("while True: pass", timeout=0.05)
    else:
        victim = one.lease.slot.pid if kind == 2 else pool._shelves["py"].zygote.pid
        if victim:
            os.kill(victim, signal.SIGKILL)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if not wanted(only, "T23", "T23b"):
        return
    seconds = 10.0 if quick else float(os.environ.get("STATEPOOL_SOAK_SECONDS", "600"))
    watch, seen, why, lock = LoadWatch(), Counter(), Counter(), threading.Lock()

    def tenant(number: int, until: float) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            fault = rng.random() < _FAULT
            try:
                with Sandbox(pool=pool, domain=f"{rng.randrange(3)}") as one:
                    clean = one.run_code("sorted(globals().keys() & {'x', 'y'}), __import__('os').listdir()").text
                    found = [clean == "([], [])", all(rng.choice(_WORK)(one) for _ in range(3))]
                    found[1] &= one.run_code(_LEAVE).error is None
                    if fault:
                        _faults(pool, one, rng.randrange(4))
            except (StatepoolError, OSError) as error:
                found = [True, False]
                why.update([str(error)[:80]] * (not fault))
            with lock:
                seen.update(runs=1, faults=fault, dirty=not found[0], failed=not found[1] and not fault)

    with Pool(low=2, high=8, most=32) as pool:
        held = []
        for part in (seconds * 0.1, seconds * 0.9):  # what is made once is made in the first tenth
            until = time.monotonic() + part
            crowd = [threading.Thread(target=tenant, args=(number, until)) for number in range(4)]
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join()
            pool.settle()
            time.sleep(1.0)
            held.append(_held(pool))
    load = watch.stop()
    grown = {name: held[1][name] - count for name, count in held[0].items()}
    own = f"{seen['runs']} in {seconds:g} s, {seen['faults']} with a fault; {seen['failed']} of the others failed"
    note = "; ".join(f"{count}: {text}" for text, count in why.most_common(3))
    share = 1 - seen["dirty"] / seen["runs"]
    yield row(
        "T23", "tenants under mixed load who found a clean slot", "share", "higher", 0.9999, share, own, load, note=note
    )
    shown = ", ".join(f"{name} {count:+d}" for name, count in grown.items())
    what = "most that descriptors, threads, mounts, cgroups or children grew by in the last nine tenths of it"
    note = "what waits in the pool may differ by a few slots: a slot is 5 descriptors and 6 cgroups"
    yield row("T23b", what, "of a kind", "lower", 50, float(max(grown.values())), shown, load, note=note)


def _held(pool: Pool) -> dict[str, int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    mine = f"statepool-{os.getpid()}-"
    return {
        "descriptors": len([*Path("/proc/self/fd").iterdir()]),
        "threads": threading.active_count(),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "cgroups": sum(path.name.startswith(mine) for root in pool._cgroups.values() for path in root.iterdir()),
        "children": len(children),
    }
