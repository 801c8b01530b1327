"""A search among the rows that pass a filter, in whatever holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from .answer import Result, Stats, union
from .policy import choose_detour, choose_path, least_share

__all__ = ["Ask", "Passing", "search_among"]

_SEEDS = 64
"""Rows that pass, spread over all, from which a search starts too."""

_WAYS = {"scan": 0, "check": 1, "two-hop": 2}


@dataclass(frozen=True, slots=True)
class Ask:
    """What is looked for."""

    query: np.ndarray
    k: int
    ef: int
    deadline_ns: int = 0


@dataclass(frozen=True, slots=True)
class Passing:
    """The rows that may be found. Looking through all takes as long as a search does, so this is made once."""

    allowed: np.ndarray
    """bool, of every place; not to be written to."""
    matches: int
    seeds: np.ndarray
    """Some of them, spread over all, uint32."""

    @classmethod
    def of(cls, allowed: np.ndarray) -> Self:
        """Of the places that are true."""
        places = np.flatnonzero(allowed)
        return cls(allowed, len(places), places[:: max(1, len(places) // _SEEDS)][:_SEEDS].astype(np.uint32))


class _Core(Protocol):
    def __call__(
        self, ask: Ask, width: int, way: int, allowed: np.ndarray, seeds: np.ndarray, probe: int, least: float
    ) -> tuple[np.ndarray, np.ndarray, Any, float]:
        """Ids, distances, counts, and the share of the candidates that passed: the last ones, or those of the probe.

        With a ``probe`` of so many candidates, the search ends after it if that share is below ``least``.
        """


def search_among(
    core: _Core, ask: Ask, passing: Passing, rows: int, *, exact: bool = False, sealed: bool = False
) -> Result:
    """The ``min(k, matches)`` nearest rows of those that are allowed.

    Args:
        core: Searches one way.
        ask: The query.
        passing: Those that are allowed.
        rows: How many rows there are, those that may not be found too.
        exact: Look at every allowed row.
        sealed: ``check`` goes by the codes of a sealed graph.
    """
    matches = passing.matches
    plan = choose_path(rows, matches, ask.ef, sealed=sealed)
    if plan.path == "empty":
        return Result(np.empty(0, np.int64), np.empty(0, np.float32), False, Stats(0, 0, 0, 0, 0, "empty", 0))
    bytes_ = passing.allowed.view(np.uint8)

    def go(path: str, width: int, probe: int = 0) -> tuple[Result, float]:
        least = least_share(rows, matches)
        ids, gaps, counts, share = core(ask, max(width, ask.k), _WAYS[path], bytes_, passing.seeds, probe, least)
        if probe:
            path = f"probe, {path}" if share >= least else "probe"
        return Result(ids, gaps, counts.truncated, Stats.of(counts, path, matches)), share

    if exact or plan.path == "scan":
        return go("scan", ask.ef)[0]
    found, share = go(plan.path, plan.width, plan.probe)
    further = choose_detour(share, rows, matches, ask.ef)
    if further is not None:
        found = _and(go(further.path, further.width)[0], found, ask.k)
    if len(found.ids) < min(ask.k, matches) and not found.truncated:
        found = _and(go("scan", ask.ef)[0], found, ask.k)
    return found


def _and(second: Result, first: Result, k: int) -> Result:
    """Of two searches among the same rows; the paths in the order they were taken."""
    both = union(first, second, k)
    both.stats.matches = first.stats.matches
    return both
