"""The simulated search: a graph, the distances of one query, candidate pools, counts."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field

import numpy as np

from .costs import Costs

__all__ = ["Graph", "Outcome", "Pool", "Search"]

Candidate = tuple[float, int]


@dataclass(frozen=True, slots=True)
class Graph:
    """Lists of neighbours and the entries of an index."""

    links: list[list[int]]
    entries: list[int]

    @classmethod
    def of(cls, links: np.ndarray, entries: np.ndarray) -> Graph:
        """From the arrays of an index: uint32 ``[n, R]`` filled up with 0xffffffff, and the entries."""
        return cls([[int(node) for node in row if node != 0xFFFFFFFF] for row in links], entries.tolist())


class Pool:
    """The nearest ``width`` candidates, sorted; who was expanded."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.items: list[Candidate] = []
        self.open: list[Candidate] = []

    def insert(self, item: Candidate) -> None:
        """Insert as open if it is among the best ``width``."""
        if len(self.items) >= self.width:
            if item >= self.items[-1]:
                return
            dropped = self.items.pop()
            if self.open and self.open[-1] == dropped:
                self.open.pop()
        insort(self.items, item)
        insort(self.open, item)

    def take(self, limit: float) -> Candidate | None:
        """The nearest open candidate up to ``limit``, no longer open."""
        if self.open and self.open[0][0] <= limit:
            return self.open.pop(0)
        return None

    def split(self, limit: float, most: int) -> list[Candidate]:
        """Every second open candidate from the second on, up to ``limit``; they leave the pool."""
        moved = [item for item in self.open[1::2] if item[0] <= limit][:most]
        for item in moved:
            self.open.remove(item)
            del self.items[bisect_left(self.items, item)]
        return moved

    def kth(self, k: int) -> float:
        """Distance of the k-th best, counted from 1; infinite if there are fewer."""
        return self.items[k - 1][0] if len(self.items) >= k else math.inf


@dataclass(slots=True)
class Outcome:
    """One simulated query."""

    nanoseconds: float
    distances: int
    found: list[int]
    """The k nearest, nearest first."""


@dataclass(slots=True)
class Search:
    """What the threads of one simulated query share."""

    graph: Graph
    costs: Costs
    distance: list[float]
    """Of every row to the query."""
    width: int
    seen: set[int] = field(default_factory=set)
    count: int = 0

    def meet(self, node: int) -> list[Candidate]:
        """Neighbours nobody met, met now."""
        new = [other for other in self.graph.links[node] if other not in self.seen]
        self.seen.update(new)
        self.count += len(new)
        return [(self.distance[other], other) for other in new]

    def enter(self, part: int, parts: int, pool: Pool) -> float:
        """Put a share of the entries into ``pool``; how long that takes."""
        entries = self.graph.entries
        new = [node for node in entries[part % len(entries) :: parts] if node not in self.seen]
        self.seen.update(new)
        self.count += len(new)
        for node in new:
            pool.insert((self.distance[node], node))
        return self.costs.distance * len(new)

    def finish(self, nanoseconds: float, pools: list[Pool], k: int) -> Outcome:
        """Merge the pools."""
        best = sorted({item for pool in pools for item in pool.items[:k]})[:k]
        return Outcome(nanoseconds, self.count, [node for _, node in best])
