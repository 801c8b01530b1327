"""Calibrate on this machine, check the simulator against it, and only then say what more threads would bring."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from statepool.core.errors import Unavailable
from statepool.vector.index import Index
from statepool.vector.native import ENGINES as NUMBERS
from statepool.vector.native import core
from statepool.vector.policy import choose_period

from .costs import Costs, fit
from .engines import ENGINES, simulate
from .world import Graph, Search

__all__ = ["CASES", "LIMIT", "Advantage", "Case", "Check", "Point", "Projection", "Study", "compare"]

LIMIT = 0.15
"""Relative error of a ratio up to which projections mean something."""

WIDTHS = (20, 40, 80, 160)
REPEATS = 7
TRIES = 10
"""Calls of the probe of two threads; one that another process gets in the way of answers nothing."""
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
class Case:
    """One way to search."""

    engine: str
    threads: int
    width: int
    hops: int = 8


CASES = (
    Case("sequential", 1, 80),
    Case("sequential", 1, 30),
    Case("sequential", 1, 120),
    *(Case(engine, 2, 80) for engine in ENGINES[1:]),
)
"""What the simulator is checked by, all relative to the first."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Simulated latency of engines at one recall, of those that reach it."""

    threads: int
    nanoseconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Advantage:
    """What one engine has over another in simulated time."""

    mine: tuple[float, int]
    """Least latency in ns, and the threads it takes."""
    rival: tuple[float, int]
    """The other's."""
    throughput: float
    """Queries per core and second against the other's at its least latency, of what is no slower; 0 if nothing is."""

    @property
    def latency(self) -> float:
        """How many times lower the least latency is."""
        return self.rival[0] / self.mine[0]


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
        """Constants from sequential searches at several widths and from the probes.

        Raises:
            Unavailable: no second thread answered: the machine has no idle core.
        """
        for _ in range(TRIES):
            handoffs = core.measure_handoffs(200)
            if min(handoffs) > 0:
                break
            time.sleep(0.05)
        else:
            raise Unavailable("calibration: no second thread answered in 2 ms; run it on a machine with two idle cores")
        points = self.measure([Case("sequential", 1, width) for width in WIDTHS])
        # Of several passes the one that was disturbed least.
        steps = min((self._index._core.measure_steps(self._queries, WIDTHS[2]) for _ in range(REPEATS)), key=sum)
        passes = [self._index._core.measure_beside(self._queries, WIDTHS[2]) for _ in range(REPEATS)]
        # And of pairs, where either side may have been, the middle one.
        ratios = sorted((one for one in passes if one[0]), key=lambda one: one[3] / one[0])
        if not ratios:
            raise Unavailable("calibration: no second thread came in 2 ms; run it on a machine with two idle cores")
        beside = ratios[len(ratios) // 2]
        times, distances, hops = ([getattr(p, name) for p in points] for name in ("nanoseconds", "distances", "hops"))
        return fit(times, distances, hops, steps, beside, handoffs)

    def measure(self, cases: Sequence[Case], repeats: int = REPEATS) -> list[Point]:
        """The real engines: per case and query the least of the repeats.

        The cases take turns, since the machine may be faster a minute later, and all queries are asked before any comes
        again, since a repeated query would find its rows in the cache.
        """
        search = self._index._core.search
        least = np.full((len(cases), len(self._queries)), np.inf)
        hits, distances, expanded = np.zeros((3, len(cases)))
        for repeat in range(repeats):
            for number, case in enumerate(cases):
                arguments = (self._k, case.width, case.threads, NUMBERS[case.engine], 0, case.hops, 0)
                for place, query in enumerate(self._queries):
                    at = time.perf_counter_ns()
                    ids, _, counts = search(query, *arguments)
                    least[number, place] = min(least[number, place], time.perf_counter_ns() - at)
                    if repeat == 0:
                        hits[number] += len(self._truth[place] & set(ids.tolist()))
                        distances[number] += counts.ndc
                        expanded[number] += counts.hops
        count = len(self._queries)
        means = zip(cases, hits / count / self._k, least.mean(axis=1), distances / count, expanded / count, strict=True)
        return [Point(case.width, *map(float, figures)) for case, *figures in means]

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

    def validate(self, costs: Costs) -> Iterator[Check]:
        """All engines with two threads, and one thread at widths that calibration did not see."""
        return self.check(costs, self.measure(CASES))

    def check(self, costs: Costs, measured: Sequence[Point]) -> Iterator[Check]:
        """What was measured of ``CASES`` against the same in simulated time, both relative to the first."""
        one: float | None = None
        for case, point in zip(CASES, measured, strict=True):
            model = self.simulate(costs, case.engine, case.threads, case.width).nanoseconds
            if one is None:
                one = model
                continue
            yield Check(case.engine, case.threads, point.nanoseconds / measured[0].nanoseconds, model / one)

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

    def project(self, costs: Costs, threads: int, recall: float) -> Projection:
        """Every engine at this recall; iQAN at its best X of ``GRID``, ours as an index would run them."""
        period = choose_period(threads, sealed=False)
        found = {engine: self.at_recall(costs, engine, threads, recall, period) for engine in ENGINES[1:]}
        tuned = [self.at_recall(costs, "iqan", threads, recall, hops) for hops in GRID]
        found["iqan"] = min((one for one in tuned if one is not None), default=None)
        return Projection(threads, {engine: one for engine, one in found.items() if one is not None})


def compare(projections: Sequence[Projection], ours: str = "async", theirs: str = "iqan") -> Advantage | None:
    """Ours against theirs, each at the number of threads that suits it; None if one never reached the recall."""
    mine = [(one.nanoseconds[ours], one.threads) for one in projections if ours in one.nanoseconds]
    rival = [(one.nanoseconds[theirs], one.threads) for one in projections if theirs in one.nanoseconds]
    if not mine or not rival:
        return None
    least, threads = min(rival)
    as_fast = [latency * count for latency, count in mine if latency <= least]
    return Advantage(min(mine), (least, threads), least * threads / min(as_fast) if as_fast else 0.0)
