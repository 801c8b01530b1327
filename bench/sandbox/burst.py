"""T4, T8, T9: many at once, the paper's two burst workloads, and cleaning up after a tenant with many files."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.machine import LoadWatch
from bench.row import Row
from bench.sandbox import peers
from bench.sandbox.measure import summary, wanted
from statepool.sandbox import Pool, Sandbox, Template
from statepool.sandbox.trial import quantile

_SEED = 2022310806
"""The seed of the paper's artifact."""
COMMAND = "python -m bench sandbox --only {}"

_RANK = """import numpy as np
a, r = np.random.default_rng(1).random((300, 300)), np.ones(300)
for _ in range(50):
    r = a @ r
    r /= r.sum()"""
FUNCTIONS = {
    "dynamic-html": ("import html", "''.join(f'<li>{html.escape(str(i))}</li>' for i in range(2000))"),
    "json": ("import json", "json.loads(json.dumps([{'id': i, 'name': str(i)} for i in range(5000)]))"),
    "pagerank": ("import numpy", _RANK),
    "aes": ("import hashlib", "k = b'k'\nfor _ in range(20000): k = hashlib.sha256(k).digest()"),
    "flip": ("import numpy", "import numpy as np\nnp.arange(2_000_000).reshape(2000, 1000)[::-1, ::-1].copy()"),
    "chameleon": (
        "import string",
        "t = string.Template('<td>$a</td>')\n''.join(t.substitute(a=i) for i in range(5000))",
    ),
}
"""What each of the paper's functions is about, small enough for two cores: what it imports, what it does."""
_BURST = {"dynamic-html": 20, "json": 4, "pagerank": 3, "aes": 3, "flip": 3, "chameleon": 5}
"""Requests of a burst, a tenth of the paper's."""


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if wanted(only, "T4", "T4b"):
        yield from _burst(quick)
    if wanted(only, "T8", "T8b"):
        yield from _workload(quick)
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


def _arrivals(cycles: int) -> list[tuple[float, str]]:
    """One function peaks at a time (the paper's W1): seconds from the start, and which."""
    rng, at, found = random.Random(_SEED), 0.0, []
    for _ in range(cycles):
        for name in rng.sample(list(FUNCTIONS), len(FUNCTIONS)):
            found += [(at + rng.random() * 0.05, name) for _ in range(_BURST[name])]
            at += 1.0 + rng.random()
    return sorted(found)


def _workload(quick: bool) -> list[Row]:
    arrivals = _arrivals(1 if quick else 4)
    watch = LoadWatch()
    templates = [
        Template(name, preload=(f"{head.split()[1]}",), warm=f"{head}\n{body}" if "numpy" in head else head)
        for name, (head, body) in FUNCTIONS.items()
    ]
    with peers.folder() as folder:
        cold = {
            name: peers.available(Path(folder) / name, f"{head}\n{body}\nprint(2)").get("bwrap")
            for name, (head, body) in FUNCTIONS.items()
        }
        with Pool(templates, low=1, high=8, most=64) as pool:
            for name in FUNCTIONS:
                pool.fill(name, 2)

            def ours(name: str) -> None:
                with Sandbox(name, pool=pool) as sandbox:
                    assert sandbox.run_code("\n".join(FUNCTIONS[name])).error is None

            sides: dict[str, Callable[[str], None]] = {"ours": ours}
            if all(cold.values()):
                sides["bwrap"] = lambda name: cold[name]()  # type: ignore[misc]
            results = {side: _replay(arrivals, act) for side, act in sides.items()}
    mine = results["ours"]
    row = Row(
        "T8",
        "W1, one function peaks at a time: P99 of cold bubblewrap over ours",
        "x",
        "higher",
        10.0,
        own=summary(mine),
    )
    if theirs := results.get("bwrap"):
        row.peer, row.peer_value, row.peer_unit = "bwrap", 1e3 * quantile(theirs, 0.99), "ms p99"
        row.value = quantile(theirs, 0.99) / quantile(mine, 0.99)
        row.note = (
            f"bwrap {summary(theirs)}; functions written from the paper's descriptions, a tenth of its concurrency"
        )
    row.command, row.load = COMMAND.format("T8"), watch.stop()
    return [row]


def _replay(arrivals: Sequence[tuple[float, str]], act: Callable[[str], None]) -> list[float]:
    times: list[float] = []
    with ThreadPoolExecutor(64) as crowd:
        began = time.perf_counter()

        def one(due: float, name: str) -> None:
            act(name)
            times.append(time.perf_counter() - began - due)

        waiting = []
        for due, name in arrivals:
            time.sleep(max(0.0, began + due - time.perf_counter()))
            waiting.append(crowd.submit(one, due, name))
        for future in waiting:
            future.result()
    return times


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
