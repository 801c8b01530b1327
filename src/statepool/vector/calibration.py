"""The width of a search that reaches a recall, from the index's own rows."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

import numpy as np

from statepool.core.errors import InvalidRequest

from .check import check_search
from .names import Ids
from .searching import Searching

__all__ = ["Calibrated", "queries_like_rows"]

SAMPLE = 128
"""Queries of a calibration; each is answered exactly once."""

STALE = 0.1
"""A calibration is repeated once the index has so many more or fewer rows, as a share."""

NEAR = 8

REACH = np.float32(2)
"""By so many of those differences a query lies beside its row. On embeddings of text, at 2 the widths are 7 to 13 %
above those that held-out texts need (at 1, four tenths below); headings, farther off, need a fifth more at .99."""


class Calibrated(Searching):
    """An index whose searches may be asked for a recall."""

    @abstractmethod
    def get(self, ids: Ids) -> np.ndarray:
        """The vectors of rows."""

    @abstractmethod
    def ids(self) -> np.ndarray:
        """Of all rows."""

    @cached_property
    def _widths(self) -> dict[tuple[int, float], tuple[int, int]]:
        """What was calibrated, and for how many rows. To be cleared with every new graph."""
        return {}

    def _width(self, k: int, ef: int | None, recall: float | None) -> int:
        """Candidates of a search.

        Raises:
            InvalidRequest: ``k > ef``, ``recall`` beside ``ef``, not between 0 and 1, or not reached by this graph.
        """
        width = check_search(k, ef)
        if recall is None:
            return width
        if ef is not None:
            raise InvalidRequest("recall: goes without ef, which it chooses", param="recall")
        if not 0 < recall < 1:
            raise InvalidRequest(f"recall: {recall} is not between 0 and 1; `exact` finds all", param="recall")
        rows = len(self)
        known = self._widths.get((k, recall))
        if known is None or abs(rows - known[1]) > STALE * known[1]:
            try:
                width = self.calibrate(queries_like_rows(self), [recall], k)[recall] if rows else k
            except InvalidRequest as error:
                raise InvalidRequest(f"recall: {error}", param="recall") from None
            known = self._widths[k, recall] = width, rows
        return known[0]


def queries_like_rows(index: Calibrated, count: int = SAMPLE) -> np.ndarray:
    """Vectors that lie beside rows of the index, ``[<= count, dim]``; the same every time.

    A row itself would be too easy a query, its neighbours are one link away. So each is a row moved along the
    difference of two of its neighbours: in a direction in which there are rows.
    """
    ids, dice = index.ids(), np.random.default_rng(0)
    chosen = ids[np.sort(dice.permutation(len(ids))[:count])]
    made: np.ndarray = index.get(chosen)
    for query in made:
        near = index.get(index.search(query, NEAR + 1).ids[1:])
        if len(near) > 1:
            one, other = dice.choice(len(near), 2, replace=False)
            query += (near[one] - near[other]) * REACH
    stays: np.ndarray = made[np.abs(made).max(axis=1) > 0]
    return stays
