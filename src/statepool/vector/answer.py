"""What a search answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Result", "Stats", "union"]


@dataclass(slots=True)
class Stats:
    """What a search did."""

    ndc: int
    """Distance computations of all threads."""
    ndc_max: int
    """Distance computations of the thread that did most: the latency, in a unit no machine changes."""
    hops: int
    """Nodes expanded."""
    thresholds: int
    """How often the shared threshold was lowered."""
    threads: int
    """Threads that took part."""
    path: str = "graph"
    """How rows were looked for: ``graph``, or under a filter ``empty``, ``scan``, ``probe``, ``two-hop``, ``check``;
    several, with commas, if the first did not do or base and changes differ."""
    matches: int | None = None
    """Rows that pass the filter; None without one."""

    @classmethod
    def of(cls, counts: Any, path: str = "graph", matches: int | None = None) -> Stats:
        """From the counts of the compiled core."""
        return cls(counts.ndc, counts.ndc_max, counts.hops, counts.thresholds, counts.threads, path, matches)

    def __add__(self, other: Stats) -> Stats:
        """Of two searches, one after the other."""
        paths = [self.path, *(one for one in other.path.split(", ") if one not in self.path.split(", "))]
        matches = None if self.matches is None or other.matches is None else self.matches + other.matches
        return Stats(
            self.ndc + other.ndc,
            self.ndc_max + other.ndc_max,
            self.hops + other.hops,
            self.thresholds + other.thresholds,
            max(self.threads, other.threads),
            ", ".join(paths),
            matches,
        )


@dataclass(slots=True)
class Result:
    """The nearest rows, nearest first; fewer than ``k`` if the index holds fewer."""

    ids: np.ndarray
    """int64 ``[<= k]``, or texts where the index has text ids."""
    distances: np.ndarray
    """float32 ``[<= k]``, in the unit of the metric."""
    truncated: bool
    """The deadline came first: better rows may have been missed."""
    stats: Stats
    vectors: np.ndarray | None = None
    """float32 ``[<= k, dim]``, if they were asked for."""


def union(first: Result, second: Result, k: int) -> Result:
    """The ``k`` nearest of both. Of an id in both, the row of ``first`` counts."""
    known = set(first.ids.tolist())
    stays = [place for place, one in enumerate(second.ids.tolist()) if one not in known]
    ids = np.concatenate([first.ids, second.ids[stays]])
    gaps = np.concatenate([first.distances, second.distances[stays]])
    order = np.argsort(gaps, kind="stable")[:k]
    return Result(ids[order], gaps[order], first.truncated or second.truncated, first.stats + second.stats)
