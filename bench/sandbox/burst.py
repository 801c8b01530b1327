"""T4, T9: many at once, and cleaning up after a tenant with many files."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox.measure import summary, wanted
from statepool.sandbox import Pool, Sandbox

COMMAND = "python -m bench sandbox --only {}"


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if wanted(only, "T4", "T4b"):
        yield from _burst(quick)
    if wanted(only, "T9"):
        yield _clean(quick)


def _burst(quick: bool) -> list[Row]:
    count = 100 if quick else 500
    watch, times, errors = LoadWatch(), [], []
    lock = threading.Lock()

    def one(_: int) -> None:
        began = time.perf_counter()
        try:
            with Sandbox(pool=pool) as sandbox:
                assert sandbox.run_code("1 + 1").text == "2"
        except Exception as error:  # counted
            with lock:
                errors.append(error)
        with lock:
            times.append(time.perf_counter() - began)

    with Pool(low=8, high=96, most=160) as pool, ThreadPoolExecutor(64) as crowd:
        pool.fill("py", 64)
        list(crowd.map(one, range(64)))
        pool.settle()
        times.clear()
        began = time.perf_counter()
        list(crowd.map(one, range(count)))
        rate = count / (time.perf_counter() - began)
    load, command = watch.stop(), COMMAND.format("T4,T4b")
    return [
        Row(
            "T4",
            f"{count} sandboxes asked for by 64 at once",
            "a second",
            "higher",
            250,
            rate,
            summary(times),
            command=command,
            load=load,
            note=f"{len(errors)} errors",
        ),
        Row("T4b", "of these, those that failed", "errors", "lower", 0, float(len(errors)), command=command, load=load),
    ]


def _clean(quick: bool) -> Row:
    counts = (10, 1000) if quick else (10, 1000, 20_000)
    watch, told, last = LoadWatch(), [], 0.0
    with Pool(low=0, high=1) as pool:
        for count in counts:
            times = []
            for _ in range(5):
                sandbox = Sandbox(pool=pool)
                sandbox.run_code(f"for i in range({count}): open(f'/tmp/{{i}}', 'w').write('x' * 100)")
                slot = sandbox.lease.slot
                sandbox.context.drop()
                began = time.perf_counter()
                problem = slot.reset(network=False)
                times.append(time.perf_counter() - began)
                assert problem is None, problem
                pool.discard(slot, "measured")
                pool.give_uid(sandbox.lease.uid)
                sandbox._open = False
            last = statistics.median(times)
            told.append(f"{count} files {1e3 * last:.2f} ms")
    return Row(
        "T9",
        f"a slot clean again after a tenant with {counts[-1]} files: median, nobody waits for it",
        "ms",
        "lower",
        1.0,
        1e3 * last,
        "; ".join(told),
        command=COMMAND.format("T9"),
        load=watch.stop(),
        note=f"tmpfs of a layer goes in a thread; {os.cpu_count()} cores",
    )
