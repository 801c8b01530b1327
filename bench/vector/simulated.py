"""V5 and V6: the simulator of p threads, checked against this machine, and what it says of more threads than it has."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from bench.machine import LoadWatch
from bench.row import Row
from bench.vector import data

SETS = ("mini", "syn")
THREADS = (4, 8, 16, 32, 64)
RECALL = 0.99
REALTIME = 30
"""Priority of the timed bursts."""
TRIES = 3
"""Measurements that may be disturbed; the least error counts, and the row tells how many there were."""


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """The wanted rows, set after set; none of V5 where V6 misses."""
    if not (wanted("V5") or wanted("V6")):
        return
    for name in SETS:
        try:
            rows, queries, _ = data.load(name)
        except data.Missing as error:
            print(f"V5, V6: {error}", file=sys.stderr)
            continue
        watch = LoadWatch()
        found = list(_study(name, rows, queries, 20 if quick else 60))
        load = watch.stop()
        for row in found:
            row.load, row.command = load, "python -m bench vector --only V5,V6"
            if wanted(row.id.split("-")[0]):
                yield row


def _study(name: str, rows: np.ndarray, queries: np.ndarray, count: int) -> Iterator[Row]:
    from statepool.vector import Index
    from statepool.vector.sim.study import CASES, LIMIT, Study, compare

    index = Index(rows.shape[1], "cos")
    index.build(rows)
    study, other = Study(index, queries[:count]), Study(index, queries[count : 2 * count])
    errors: list[float] = []
    best = None
    for _ in range(TRIES):
        with undisturbed():
            costs = other.calibrate()
            measured = study.measure(CASES)
        checks = list(study.check(costs, measured))
        errors.append(max(one.error for one in checks))
        if errors[-1] == min(errors):
            best = costs, checks
    assert best is not None, "there is at least one try"
    costs, checks = best
    text = ", ".join(f"{c.engine} p={c.threads} {c.measured:.2f} as {c.simulated:.2f}" for c in checks)
    what = f"largest error of a simulated ratio to one thread, p=1 and 2, all engines ({name})"
    note = f"measured as simulated: {text}; errors of {TRIES} tries {', '.join(f'{one:.0%}' for one in errors)}"
    yield Row(f"V6-{name}", what, "", "lower", LIMIT, min(errors), f"{min(errors):.1%}", note=note)
    valid = min(errors) <= LIMIT
    found = [study.project(costs, threads, RECALL) for threads in THREADS] if valid else []
    gain = compare(found)
    table = "; ".join(
        f"p={one.threads} " + " ".join(f"{engine} {ns / 1e3:.1f}" for engine, ns in one.nanoseconds.items())
        for one in found
    )
    for part, target, what in (
        ("latency", 1.9, "least latency of iQAN, tuned over width and X, over ours"),
        ("throughput", 2.1, "queries per core and second of ours over those of iQAN, at its least latency or better"),
    ):
        value = None if gain is None else gain.latency if part == "latency" else gain.throughput
        own = "" if gain is None else f"{gain.mine[0] / 1e3:.1f} µs with {gain.mine[1]} threads"
        yield Row(
            f"V5-{part}-{name}", f"SIMULATED, 4 to 64 threads, recall {RECALL}: {what} ({name})", "x", "higher",
            target, value, own, peer="iQAN (ours, simulated)", peer_unit="µs",
            peer_value=None if gain is None else gain.rival[0] / 1e3,
            note=f"simulated µs: {table}" if valid else "not projected: the simulator missed V6",
        )  # fmt: skip


@contextmanager
def undisturbed() -> Iterator[None]:
    """For bursts of a second, before everybody else if that is allowed."""
    if os.geteuid() != 0:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
