"""Calibrate on this machine, check the simulator against it, and only then say what more threads would bring."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from statepool.vector.index import Index
from statepool.vector.native import ENGINES, core

from .costs import Costs, fit
from .engines import simulate
from .world import Graph, Search

__all__ = ["Check", "Point", "Study"]

WIDTHS = (20, 40, 80, 160)
GRID = (2, 4, 8, 16, 32)
"""Expansions between two joins that iQAN is tuned over."""


@dataclass(frozen=True, slots=True)
class Point:
    """Means over the queries at one width."""

    width: int
    recall: float
    nanoseconds: float
    distances: float
    hops: float


@dataclass(frozen=True, slots=True)
class Check:
    """Latency relative to one thread at the same width, as measured and as simulated."""

    engine: str
    threads: int
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Relative error of the simulated ratio."""
        return abs(self.simulated / self.measured - 1.0)


class Study:
    """One index that is not sealed, and queries with their true neighbours by exhaustive search."""

    def __init__(self, index: Index, queries: np.ndarray, k: int = 10) -> None:
        self._index, self._k = index, k
        self._queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._graph = Graph.of(*index.graph())
        self._distances = [index.distances(query).tolist() for query in self._queries]
        order = (np.argsort(np.asarray(row), kind="stable")[:k] for row in self._distances)
        self._truth = [set(best.tolist()) for best in order]

    def calibrate(self) -> Costs:
        """Constants from sequential searches at several widths and from the hand-off probe.

        Raises:
            RuntimeError: no second thread answered: the machine has no idle core.
        """
        handoffs = core.measure_handoffs(200)
        if min(handoffs) <= 0:
            raise RuntimeError(
                "calibration: no second thread answered in 2 ms; run it on a machine with two idle cores"
            )
        points = [self.measure("sequential", 1, width) for width in WIDTHS]
        return fit([p.nanoseconds for p in points], [p.distances for p in points], [p.hops for p in points], handoffs)

    def measure(self, engine: str, threads: int, width: int, repeats: int = 5, hops: int = 8) -> Point:
        """The real engine: per query the least of the repeats."""
        search, number = self._index._core.search, ENGINES[engine]
        least = np.full(len(self._queries), np.inf)
        hits, distances, expanded = 0, 0.0, 0.0
        # All queries before any comes again: a repeated query would find its rows in the cache.
        for repeat in range(repeats):
            for place, query in enumerate(self._queries):
                at = time.perf_counter_ns()
                ids, _, counts = search(query, self._k, width, threads, number, 0, hops, 0)
                least[place] = min(least[place], time.perf_counter_ns() - at)
                if repeat == 0:
                    hits += len(self._truth[place] & set(ids.tolist()))
                    distances += counts.ndc
                    expanded += counts.hops
        count = len(self._queries)
        return Point(width, hits / count / self._k, float(least.mean()), distances / count, expanded / count)

    def simulate(self, costs: Costs, engine: str, threads: int, width: int, hops: int = 8) -> Point:
        """The same in simulated time."""
        spent, hits, distances = 0.0, 0, 0
        for row, truth in zip(self._distances, self._truth, strict=True):
            done = simulate(engine, Search(self._graph, costs, row, width), threads, self._k, hops)
            spent += done.nanoseconds
            hits += len(truth & set(done.found))
            distances += done.distances
        count = len(self._queries)
        return Point(width, hits / count / self._k, spent / count, distances / count, 0.0)

    def validate(self, costs: Costs, width: int = 80) -> Iterator[Check]:
        """All engines with two threads, and one thread at widths that calibration did not see."""
        one = self.simulate(costs, "sequential", 1, width).nanoseconds
        cases = [("sequential", 1, 30), ("sequential", 1, 120)]
        cases += [(engine, 2, width) for engine in ("edge", "iqan", "nosync", "async")]
        for engine, threads, wide in cases:
            # Pairs side by side: the machine may be faster a minute later.
            pairs = [(self.measure(engine, threads, wide), self.measure("sequential", 1, width)) for _ in range(3)]
            measured = sorted(mine.nanoseconds / alone.nanoseconds for mine, alone in pairs)[1]
            yield Check(engine, threads, measured, self.simulate(costs, engine, threads, wide).nanoseconds / one)

    def at_recall(self, costs: Costs, engine: str, threads: int, recall: float, hops: int = 8) -> float | None:
        """Simulated nanoseconds at this recall, between the two widths around it; None if no width reaches it."""
        before: Point | None = None
        for width in (16, 24, 32, 48, 64, 80, 100, 130, 170, 220, 300):
            point = self.simulate(costs, engine, threads, width, hops)
            if point.recall >= recall:
                if before is None or point.recall == before.recall:
                    return point.nanoseconds
                part = (recall - before.recall) / (point.recall - before.recall)
                return before.nanoseconds + part * (point.nanoseconds - before.nanoseconds)
            before = point
        return None

    def tuned(self, costs: Costs, threads: int, recall: float, grid: Sequence[int] = GRID) -> float | None:
        """iQAN at its best X."""
        found = [self.at_recall(costs, "iqan", threads, recall, hops) for hops in grid]
        return min((one for one in found if one is not None), default=None)
