"""V8: queries that arrive when they like. Waiting for a core counts, so the threads of a query are a choice."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from bench.row import Row
from bench.vector import data
from bench.vector.claims import built, measured
from bench.vector.simulated import undisturbed

K, WIDTH = 10, 110
LOADS = (0.2, 0.5, 0.8, 0.95)
CORES = 2
Way = int | Literal["auto"]
WAYS: dict[Way, int] = {"auto": CORES, 1: CORES, CORES: 1}
"""Threads of a query, and how many queries may run at once."""


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """The wanted rows; ``quick`` takes fewer queries."""
    yield from measured({"V8": _loads}, wanted, quick)


def _serve(index: Any, queries: np.ndarray, due: np.ndarray, threads: Way) -> np.ndarray:
    """Microseconds from when each query was due to its answer; they are taken in the order of arrival."""
    numbers, done = itertools.count(), np.zeros(len(due))
    start = time.perf_counter() + 0.005

    def work() -> None:
        while (number := next(numbers)) < len(due):
            wait = start + due[number] - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            index.search(queries[number % len(queries)], K, WIDTH, threads=threads)
            done[number] = time.perf_counter() - start - due[number]

    callers = [threading.Thread(target=work) for _ in range(WAYS[threads])]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return done * 1e6


def _loads(quick: bool) -> Iterator[Row]:
    """Arrivals are a Poisson process, the same for every way; a row's figure is a median over rounds."""
    count, rounds, asked = (5000, 2, 300) if quick else (20_000, 7, 1000)
    index, queries = built("f32", False, count), data.load("mini")[1]
    took, worked = dict.fromkeys(WAYS, np.inf), dict.fromkeys(WAYS, np.inf)
    for _ in range(rounds):
        for way in (1, "auto"):
            with undisturbed():
                before = time.process_time()
                last = _serve(index, queries, np.zeros(asked), way).max()  # all are due at once
                worked[way] = min(worked[way], (time.process_time() - before) / asked * 1e6)
            took[way] = min(took[way], last)
    rate, kept = asked / took[1] * 1e6, took[1] / took["auto"]
    full = f"{rate:.0f} queries/s at most, {kept:.2f} of that with `auto`"
    full += f"; processor time of a query then {worked[1]:.1f} µs with one thread, {worked['auto']:.1f} with `auto`"
    for load in LOADS:
        tails: dict[Way, list[float]] = {threads: [] for threads in WAYS}
        middle: dict[Way, list[float]] = {threads: [] for threads in WAYS}
        for turn in range(rounds):
            due = np.cumsum(np.random.default_rng(turn).exponential(1 / (load * rate), asked))
            for threads in WAYS:
                with undisturbed():
                    found = _serve(index, queries, due, threads)
                tails[threads].append(float(np.percentile(found, 99)))
                middle[threads].append(float(np.median(found)))
        p99 = {threads: float(np.median(each)) for threads, each in tails.items()}
        best = min((1, CORES), key=lambda threads: p99[threads])
        name = f"{best} thread{'s' if best > 1 else ''}"
        parts = [f"{way}: p50 {np.median(middle[way]):.0f} p99 {p99[way]:.0f}" for way in WAYS]
        yield Row(
            f"V8-{load * 100:.0f}",
            f"99th percentile of latency at {load:.0%} of what {CORES} cores can do: `auto` over the best fixed number",
            "x", "lower", 1.1, p99["auto"] / p99[best], f"{p99['auto']:.0f} µs",
            peer=name, peer_value=p99[best], peer_unit="µs",
            note=f"µs by threads: {', '.join(parts)}; {full}",
        )  # fmt: skip
