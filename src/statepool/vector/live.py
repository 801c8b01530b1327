"""An index that changes while it is searched: rows come, go and are replaced by any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from statepool.core.errors import InvalidRequest, NotFound

from .check import floats, labels, one_of, same_width, within
from .index import MOST_THREADS, Index, Result, Stats
from .native import DTYPES, ENGINES, METRICS, Dtype, Metric, core

__all__ = ["LiveIndex"]

_FEW_DEAD = 256


@dataclass(slots=True)
class _Parts:
    """What a search looks at. A compaction makes a new one; nobody ever sees half of it."""

    base: Index
    """Built, perhaps sealed; its rows never change."""
    live: Any
    """The compiled segment that takes the changes."""
    gone: set[int] = field(default_factory=set)
    """Ids of the base that were deleted or replaced."""
    kept: frozenset[int] = frozenset()
    """Ids of the base."""


class LiveIndex:
    """A built index and a segment for what changed since, searched as one.

    A row is found by every search that begins after ``add`` or ``update`` returned, and by none that begins after
    ``delete`` did. Rows stay reachable whatever is added and deleted around them: each is linked from one neighbour
    that never drops it (the repair of deletions is that of FreshDiskANN, arXiv 2105.09613, section 4).

    Args:
        dim: Values per vector.
        metric: ``cos``, ``ip`` or ``l2``, as for ``Index``.
        dtype: How vectors are stored.
        R: Most neighbours of a row.
        build_window: Candidates a row's neighbours are chosen from.
        alpha: How much shorter a detour must be to replace an edge; above 1, for a changing graph needs long edges.
        capacity: Changed rows that fit in, deleted ones included, until ``compact``. Memory is taken as it fills.
        seed: Of compactions.

    Raises:
        InvalidRequest: An argument out of its range.
    """

    def __init__(
        self,
        dim: int,
        metric: Metric = "cos",
        dtype: Dtype = "f32",
        *,
        R: int = 32,  # noqa: N803 - the name of the literature
        build_window: int = 150,
        alpha: float = 1.2,
        capacity: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        within("capacity", capacity, 1, 2**31 - 2)
        self.dim, self.metric, self.dtype = dim, metric, dtype
        self._settings = {"R": R, "build_window": build_window, "seed": seed}
        self._alpha, self._capacity = alpha, capacity
        self._parts = _Parts(self._empty_index(), self._empty_segment())
        self._gate, self._of_base = threading.Condition(), threading.Lock()
        self._writers, self._closed = 0, False

    @classmethod
    def over(cls, index: Index, *, alpha: float = 1.2, capacity: int = 1_000_000) -> LiveIndex:
        """Changes on top of ``index``, which stays as it is and may be a file opened with mode ``r``."""
        shape = {name: int(index._settings[name]) for name in ("R", "build_window", "seed")}
        found = cls(index.dim, index.metric, index.dtype, alpha=alpha, capacity=capacity, **shape)
        found._parts = _Parts(index, found._parts.live, kept=frozenset(index.ids().tolist()))
        return found

    def __len__(self) -> int:
        parts = self._parts
        return len(parts.kept) - len(parts.gone) + len(parts.live)

    def __contains__(self, one: int) -> bool:
        return _holds(self._parts, one)

    def add(self, X: np.ndarray, ids: Sequence[int] | np.ndarray) -> int:  # noqa: N803
        """Add rows, all or none; threads may add at the same time.

        Args:
            X: Rows ``[n, dim]``, any float dtype.
            ids: ``[n]``, 0 to 2^63 - 1, none of them in the index.

        Returns:
            n.

        Raises:
            DimensionError: ``X`` is not ``[n, dim]``.
            InvalidRequest: an id that is there already or comes twice, a row that is not finite, no room left.
        """
        rows, named = self._rows(X, ids)
        with self._change() as parts:
            self._refuse(parts, named)
            self._tell(parts.live.add, rows, named)
        return len(named)

    def update(self, ids: Sequence[int] | np.ndarray, X: np.ndarray) -> int:  # noqa: N803
        """Replace rows; until the new one answers the old one does.

        Returns:
            How many.

        Raises:
            DimensionError: ``X`` is not ``[n, dim]``.
            NotFound: an id that is not in the index; nothing is changed then.
            InvalidRequest: an id twice, a row that is not finite, no room left.
        """
        rows, named = self._rows(X, ids)
        with self._change() as parts:
            for one in named.tolist():
                if not _holds(parts, one):
                    raise NotFound(f"ids: {one} is not in the index; add it", param="ids")
            with self._of_base:
                old = np.array([one in parts.kept and one not in parts.gone for one in named.tolist()], dtype=bool)
                self._tell(parts.live.add, rows[old], named[old])
                parts.gone.update(named[old].tolist())
            self._tell(parts.live.update, rows[~old], named[~old])
            self._repair_if_due(parts)
        return len(named)

    def delete(self, ids: Sequence[int] | np.ndarray) -> int:
        """Delete rows; ids that are not there are passed over.

        Every so often a call also takes the deleted rows out of the graph, which takes the longer the larger it is.

        Returns:
            How many were there.
        """
        named = labels(ids, np.size(ids))
        with self._change() as parts:
            with self._of_base:
                based = [one for one in named.tolist() if one in parts.kept and one not in parts.gone]
                parts.gone.update(based)
            count = len(based) + int(parts.live.erase(named[named >= 0].astype(np.uint64)))
            self._repair_if_due(parts)
        return count

    def search(
        self,
        q: np.ndarray,
        k: int = 10,
        ef: int | None = None,
        *,
        threads: int = 1,
        engine: Literal["auto", "sequential", "async", "nosync"] = "auto",
        deadline_us: float | None = None,
    ) -> Result:
        """The ``k`` rows nearest to ``q``, approximately; arguments and errors as for ``Index.search``.

        The base and the changes are searched one after the other, each with ``ef`` candidates and its own deadline.
        """
        width = max(64, 2 * k) if ef is None else ef
        if not 1 <= k <= width:
            raise InvalidRequest(f"k: {k} is outside 1 to ef ({width}); raise ef", param="k")
        one_of("engine", engine, {"auto": 0, "sequential": 1, "async": 2, "nosync": 3})
        within("threads", threads, 1, MOST_THREADS)
        query = self._query(q)
        if engine == "auto":
            engine = "sequential" if threads == 1 else "async"
        deadline = 0 if deadline_us is None else max(1, int(deadline_us * 1000))
        parts = self._parts
        try:
            named, gaps, counts = parts.live.search(query, k, width, threads, ENGINES[engine], deadline, 8, 0)
        except ValueError as error:
            raise InvalidRequest(f"q: {error}", param="q") from None
        fresh = _result(named, gaps, counts)
        wanted = k
        while len(parts.base):
            found = parts.base.search(
                query, wanted, max(width, wanted), threads=threads, engine=engine, deadline_us=deadline_us
            )
            merged = _union(parts.gone, fresh, found, k)
            rest = sum(one not in parts.gone for one in found.ids.tolist())
            if rest >= min(k, len(parts.kept) - len(parts.gone)) or len(found.ids) < wanted or found.truncated:
                return merged
            wanted *= 2
        return fresh

    def exact(self, q: np.ndarray, k: int = 10) -> Result:
        """The ``k`` rows nearest to ``q``, by looking at every row; errors as for ``Index.exact``."""
        within("k", k, 1, 2**31 - 1)
        query, parts = self._query(q), self._parts
        try:
            fresh = _result(*parts.live.exact(query, k))
        except ValueError as error:
            raise InvalidRequest(f"q: {error}", param="q") from None
        return _union(parts.gone, fresh, parts.base.exact(query, k + len(parts.gone)), k)

    def get(self, ids: Sequence[int]) -> np.ndarray:
        """The vectors as they are stored, float32 ``[len(ids), dim]``; under ``cos`` they have length 1.

        Raises:
            NotFound: an id that is not in the index.
        """
        parts, found = self._parts, np.empty((len(ids), self.dim), np.float32)
        for place, one in enumerate(ids):
            row = parts.live.get(one) if 0 <= one < 2**63 else None
            if row is None:
                if one not in parts.kept or one in parts.gone:
                    raise NotFound(f"ids: {one} is not in the index", param="ids")
                row = parts.base.get([one])[0]
            found[place] = row
        return found

    def ids(self) -> np.ndarray:
        """Of all rows, int64, sorted."""
        parts = self._parts
        based = np.fromiter(parts.kept - parts.gone, np.int64)
        return np.union1d(based, parts.live.labels().astype(np.int64))

    def stats(self) -> dict[str, Any]:
        """Figures: rows, those of the base, those that changed, those deleted but not yet taken out of the graph."""
        parts = self._parts
        return {
            "rows": len(self),
            "base_rows": len(parts.base),
            "changed": len(parts.live),
            "gone": len(parts.gone),
            "dead": parts.live.dead,
            "capacity": self._capacity,
        }

    def repair(self) -> int:
        """Take deleted rows out of the graph of changes now; returns how many. Searches and changes go on meanwhile."""
        with self._change() as parts:
            return int(parts.live.repair())

    def compact(self, *, seal: bool = True, threads: int = 0) -> Index:
        """Build one index of all rows and go on over it. Searches go on meanwhile, changes wait.

        Args:
            seal: Quantise it, see ``Index.seal``.
            threads: 0 means all cores.

        Returns:
            The index, for example to save it.

        Raises:
            InvalidRequest: there are no rows.
        """
        with self._no_changes():
            named = self.ids()
            if not len(named):
                raise InvalidRequest("compact: the index is empty; add rows first")
            built = self._empty_index()
            built.build(self.get(named.tolist()), named, threads=threads)
            if seal:
                built.seal(threads=threads)
            self._parts = _Parts(built, self._empty_segment(), kept=frozenset(named.tolist()))
        return built

    def save(self, path: str | Path) -> None:
        """``compact`` and write one file for ``statepool.vector.open``; a crash leaves the old file or the new one.

        Raises:
            InvalidRequest: there are no rows, or the folder cannot be written.
        """
        self.compact().save(path)

    def _empty_index(self) -> Index:
        return Index(self.dim, self.metric, self.dtype, **self._settings)

    def _empty_segment(self) -> Any:
        if not 1.0 <= self._alpha <= 4.0:
            raise InvalidRequest(f"alpha: {self._alpha} is outside 1 to 4", param="alpha")
        settings = self._settings
        return core.LiveSegment(
            self.dim,
            METRICS[self.metric],
            DTYPES[self.dtype],
            settings["R"],
            self._capacity,
            settings["build_window"],
            self._alpha,
        )

    def _rows(self, X: Any, ids: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        rows = floats("X", X, 2)
        same_width("X", rows.shape[1], self.dim)
        named = labels(ids, len(rows))
        if len(named) and named.min() < 0:
            raise InvalidRequest(f"ids: {named.min()} is outside 0 to 2^63 - 1", param="ids")
        return rows, named

    def _refuse(self, parts: _Parts, named: np.ndarray) -> None:
        for one in named.tolist():
            if one in parts.kept and one not in parts.gone:
                raise InvalidRequest(f"ids: {one} is in the index already; update it", param="ids")

    def _tell(self, change: Any, rows: np.ndarray, named: np.ndarray) -> None:
        try:
            change(rows, named.astype(np.uint64))
        except IndexError as error:
            raise NotFound(f"ids: {error} is not in the index; add it", param="ids") from None
        except core.TakenError as error:
            raise InvalidRequest(f"ids: {error} is in the index already; update it", param="ids") from None
        except core.FullError:
            raise InvalidRequest(f"X: no room beyond {self._capacity} changed rows; compact the index") from None
        except ValueError as error:
            raise InvalidRequest(f"X: {error}", param="X") from None

    def _repair_if_due(self, parts: _Parts) -> None:
        if parts.live.dead > max(_FEW_DEAD, len(parts.live) // 5):
            parts.live.repair()

    def _query(self, q: Any) -> np.ndarray:
        query = floats("q", q, 1)
        same_width("q", query.shape[0], self.dim)
        return query

    @contextmanager
    def _change(self) -> Iterator[_Parts]:
        with self._gate:
            self._gate.wait_for(lambda: not self._closed)
            self._writers += 1
        try:
            yield self._parts
        finally:
            with self._gate:
                self._writers -= 1
                self._gate.notify_all()

    @contextmanager
    def _no_changes(self) -> Iterator[None]:
        with self._gate:
            self._gate.wait_for(lambda: not self._closed)
            self._closed = True
            self._gate.wait_for(lambda: self._writers == 0)
        try:
            yield
        finally:
            with self._gate:
                self._closed = False
                self._gate.notify_all()


def _holds(parts: _Parts, one: int) -> bool:
    return (one in parts.kept and one not in parts.gone) or (0 <= one < 2**63 and one in parts.live)


def _result(named: np.ndarray, gaps: np.ndarray, counts: Any) -> Result:
    stats = Stats(counts.ndc, counts.ndc_max, counts.hops, counts.thresholds, counts.threads)
    return Result(named.astype(np.int64), gaps, counts.truncated, stats)


def _union(gone: set[int], fresh: Result, based: Result, k: int) -> Result:
    """The k nearest of both. Of an id in both, which is being replaced just now, the new row counts."""
    known = set(fresh.ids.tolist())
    stays = [place for place, one in enumerate(based.ids.tolist()) if one not in gone and one not in known]
    ids = np.concatenate([fresh.ids, based.ids[stays]])
    gaps = np.concatenate([fresh.distances, based.distances[stays]])
    order = np.argsort(gaps, kind="stable")[:k]
    a, b = fresh.stats, based.stats
    stats = Stats(
        a.ndc + b.ndc, a.ndc_max + b.ndc_max, a.hops + b.hops, a.thresholds + b.thresholds, max(a.threads, b.threads)
    )
    return Result(ids[order], gaps[order], fresh.truncated or based.truncated, stats)
