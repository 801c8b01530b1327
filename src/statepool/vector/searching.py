"""What every index can do once it can search: many queries, ranges, and the ef that reaches a recall."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest

from .answer import Result
from .check import cores, floats, same_width, within
from .settings import Settings

__all__ = ["Filter", "Searching"]

Filter = Mapping[str, Any]
"""Which rows may be found, see ``statepool.vector.filters``."""


class Searching(ABC):
    """Searches made of ``search`` and ``exact``."""

    settings: Settings

    @abstractmethod
    def search(self, q: np.ndarray, k: int = 10, ef: int | None = None, *, filter: Filter | None = None) -> Result:  # noqa: A002
        """The ``k`` rows nearest to ``q``, approximately."""

    @abstractmethod
    def exact(self, q: np.ndarray, k: int = 10, *, filter: Filter | None = None) -> Result:  # noqa: A002
        """The ``k`` rows nearest to ``q``, by looking at every row."""

    @abstractmethod
    def __len__(self) -> int: ...

    def search_batch(
        self,
        Q: np.ndarray,  # noqa: N803
        k: int = 10,
        ef: int | None = None,
        *,
        filter: Filter | None = None,  # noqa: A002 - the name of the literature
        workers: int = 0,
    ) -> list[Result]:
        """``search`` for every row of ``Q`` ``[m, dim]``, one thread per query, several queries at once.

        Args:
            Q: ``[m, dim]``.
            k: Rows wanted of each.
            ef: As for ``search``.
            filter: As for ``search``.
            workers: Queries at once; 0 means all cores. Answers do not depend on it.

        Raises:
            DimensionError: ``Q`` is not ``[m, dim]``.
            InvalidRequest: as ``search``.
        """
        queries = self._queries(Q)
        with ThreadPoolExecutor(cores(workers)) as pool:
            return list(pool.map(lambda query: self.search(query, k, ef, filter=filter), queries))

    def range_search(
        self,
        q: np.ndarray,
        radius: float,
        ef: int = 64,
        *,
        filter: Filter | None = None,  # noqa: A002
    ) -> Result:
        """The rows within ``radius`` of ``q``, nearest first, approximately.

        Widens the search until the farthest candidate lies outside.

        Args:
            q: ``[dim]``.
            radius: Largest distance, in the unit of the metric.
            ef: Candidates of the first search.
            filter: As for ``search``.

        Raises:
            DimensionError: ``q`` is not ``[dim]``.
            InvalidRequest: ``radius`` is not finite, or as ``search``.
        """
        if not np.isfinite(radius):
            raise InvalidRequest(f"radius: {radius} is not finite", param="radius")
        within("ef", ef, 1, 2**31)
        while True:
            found = self.search(q, ef, ef, filter=filter)
            inside = int(np.searchsorted(found.distances, radius, side="right"))
            if inside < len(found.ids) or len(found.ids) < ef or ef >= len(self):
                return Result(found.ids[:inside], found.distances[:inside], found.truncated, found.stats)
            ef *= 4

    def calibrate(
        self,
        Q: np.ndarray,  # noqa: N803
        targets: Sequence[float] = (0.9, 0.95, 0.99),
        k: int = 10,
    ) -> dict[float, int]:
        """The smallest ``ef``, within 5 %, that reaches each recall at ``k`` on sample queries ``Q`` ``[m, dim]``.

        Raises:
            InvalidRequest: a target that is not reached although every row is a candidate.
        """
        queries = self._queries(Q)
        truth = [self.exact(query, k).ids for query in queries]
        wanted = sum(map(len, truth))

        def recall(ef: int) -> float:
            found = self.search_batch(queries, k, ef)
            return sum(len(np.intersect1d(f.ids, t)) for f, t in zip(found, truth, strict=True)) / max(wanted, 1)

        table = {}
        for target in targets:
            low, high = k - 1, k
            while recall(high) < target:
                if high >= max(len(self), k):
                    raise InvalidRequest(f"targets: recall {target} is not reached by this graph", param="targets")
                low, high = high, min(2 * high, max(len(self), k))
            while high - low > max(1, low // 20):
                middle = (low + high) // 2
                low, high = (middle, high) if recall(middle) < target else (low, middle)
            table[target] = high
        return table

    def _query(self, q: np.ndarray) -> np.ndarray:
        query = floats("q", q, 1)
        same_width("q", query.shape[0], self.settings.dim)
        return query

    def _queries(self, Q: np.ndarray) -> np.ndarray:  # noqa: N803
        queries = floats("Q", Q, 2)
        same_width("Q", queries.shape[1], self.settings.dim)
        return queries
