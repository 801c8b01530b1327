"""What a search of a changing index looks at: a built index and the changes since, as they are or as they were."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from statepool.core.errors import InvalidRequest, NotFound

from .answer import Result, Stats, union
from .calibration import Calibrated
from .check import one_of, within
from .columns import Columns
from .filtered import Ask, Passing, search_among
from .filters import mask
from .index import MOST_THREADS, Index
from .names import Ids, Names
from .native import ENGINES, core
from .searching import Filter

__all__ = ["Layered", "Parts", "Snapshot", "View"]

LiveEngine = Literal["auto", "sequential", "async", "nosync"]


@dataclass(slots=True)
class Parts:
    """What an index consists of. A compaction makes a new one; nobody ever sees half of it."""

    base: Index
    """Built, perhaps sealed; its rows never change."""
    live: Any
    """The compiled segment that takes the changes."""
    columns: Columns
    """Of the segment's slots."""
    gone: np.ndarray
    """bool ``[len(base)]``: rows of the base that were deleted or replaced."""
    names: Names | None = None
    """Texts of ids; everything else here goes by their numbers."""

    def __len__(self) -> int:
        return len(self.base) - int(np.count_nonzero(self.gone)) + len(self.live)

    def place(self, one: int) -> int | None:
        """Of a row in the base that still counts."""
        place = self.base.place(one)
        return None if place is None or self.gone[place] else place

    def holds(self, one: int) -> bool:
        """Whether there is such a row."""
        return self.place(one) is not None or (0 <= one < 2**63 and one in self.live)


@dataclass(frozen=True, slots=True)
class _Frozen:
    """Which rows there were at a moment."""

    gone: np.ndarray
    labels: np.ndarray
    alive: np.ndarray


class Layered(Calibrated):
    """Base and changes, searched as one."""

    @abstractmethod
    def _view(self) -> View:
        """What a search that begins now looks at."""

    def search(
        self,
        q: np.ndarray,
        k: int = 10,
        ef: int | None = None,
        *,
        recall: float | None = None,
        threads: int = 1,
        engine: LiveEngine = "auto",
        deadline_us: float | None = None,
        filter: Filter | None = None,  # noqa: A002 - the name of the literature
        return_vectors: bool = False,
    ) -> Result:
        """The ``k`` rows nearest to ``q``, approximately; arguments and errors as for ``Index.search``.

        The base and the changes are searched one after the other, each with ``ef`` candidates and its own deadline.
        The width of a ``recall`` is calibrated anew once there are a tenth more or fewer rows. Vectors are those of
        now: of a row that is replaced meanwhile, perhaps not what the distance was measured to.
        """
        width = self._width(k, ef, recall)
        one_of("engine", engine, {"auto": 0, "sequential": 1, "async": 2, "nosync": 3})
        within("threads", threads, 1, MOST_THREADS)
        deadline = 0 if deadline_us is None else max(1, int(deadline_us * 1000))
        ask = Ask(self._query(q), k, width, deadline)
        while True:
            view = self._view()
            found = view._nearest(ask, threads, engine, deadline_us, filter)
            if not return_vectors:
                return found
            try:
                found.vectors = view._rows(found.ids)
                return found
            except NotFound:
                continue  # one was deleted since it was found

    def exact(self, q: np.ndarray, k: int = 10, *, filter: Filter | None = None) -> Result:  # noqa: A002
        """The ``k`` rows nearest to ``q``, by looking at every row; errors as for ``Index.exact``."""
        within("k", k, 1, 2**31 - 1)
        return self._view()._passing(Ask(self._query(q), k, k), filter, exact=True)

    def get(self, ids: Ids) -> np.ndarray:
        """The vectors as they are stored, float32 ``[len(ids), dim]``; under ``cos`` they have length 1.

        Raises:
            NotFound: an id that is not in the index.
        """
        return self._view()._rows(ids)

    def ids(self) -> np.ndarray:
        """Of all rows: int64, sorted, or texts in no order."""
        return self._view()._named()

    def __contains__(self, one: int | str) -> bool:
        return self._view()._has(one)


class View(Layered):
    """Base and changes at one moment.

    Args:
        parts: what there is.
        frozen: which rows count, if not those there are.
    """

    def __init__(self, parts: Parts, frozen: _Frozen | None = None) -> None:
        self.settings = parts.base.settings
        self._parts, self._frozen = parts, frozen

    def _view(self) -> View:
        return self

    def _nearest(
        self,
        ask: Ask,
        threads: int,
        engine: LiveEngine,
        deadline_us: float | None,
        filter: Filter | None,  # noqa: A002
    ) -> Result:
        if filter is not None or self._frozen is not None:
            return self._passing(ask, filter)
        if engine == "auto":
            engine = "sequential" if threads == 1 else "async"
        # The base first: what is replaced meanwhile is found there, or among the changes, which are looked at later.
        based = self._search_base(ask, threads, engine, deadline_us) if len(self._parts.base) else None
        try:
            arguments = (ask.query, ask.k, ask.ef, threads, ENGINES[engine], ask.deadline_ns, 8, 0)
            found = self._parts.live.search(*arguments)
        except ValueError as error:
            raise InvalidRequest(f"q: {error}", param="q") from None
        fresh = _result(*found)
        return self._told(fresh if based is None else union(fresh, based, ask.k))

    def _passing(self, ask: Ask, filter: Filter | None, *, exact: bool = False) -> Result:  # noqa: A002
        return self._told(self._among(ask, filter, exact=exact))

    def _told(self, found: Result) -> Result:
        if self._parts.names is not None:
            found.ids = self._parts.names.texts(found.ids)
        return found

    def __len__(self) -> int:
        if self._frozen is None:
            return len(self._parts)
        return int(np.count_nonzero(~self._frozen.gone)) + int(self._frozen.alive.sum())

    def _has(self, one: int | str) -> bool:
        return self._holds(self._key(one))

    def _key(self, one: Any) -> int:
        return one if self._parts.names is None else self._parts.names.key(one)

    def _holds(self, one: int) -> bool:
        if self._frozen is None:
            return self._parts.holds(one)
        return self._slot(one) is not None or self._place(one) is not None

    def _rows(self, ids: Ids) -> np.ndarray:
        found = np.empty((len(ids), self.settings.dim), np.float32)
        for number, one in enumerate(ids):
            key = self._key(one)
            row = self._changed_row(key)
            if row is None:
                place = self._place(key)
                if place is None:
                    raise NotFound(f"ids: {one} is not in the index", param="ids")
                row = self._parts.base.get([key])[0]
            found[number] = row
        return found

    def _named(self) -> np.ndarray:
        keys = self.keys()
        return keys if self._parts.names is None else self._parts.names.texts(keys)

    def keys(self) -> np.ndarray:
        """The numbers of all rows, int64, sorted: ids, or what texts are known by."""
        parts, frozen = self._parts, self._frozen
        gone = parts.gone if frozen is None else frozen.gone
        labels = parts.live.labels() if frozen is None else frozen.labels[frozen.alive.view(bool)]
        return np.union1d(parts.base.ids()[~gone], labels.astype(np.int64))

    def _search_base(self, ask: Ask, threads: int, engine: LiveEngine, deadline_us: float | None) -> Result:
        """The nearest of the base that still count: as many more are looked at as those that do not take places of."""
        parts, rows = self._parts, len(self._parts.base)
        left = rows - int(np.count_nonzero(parts.gone))
        if not left:
            return Result(np.empty(0, np.int64), np.empty(0, np.float32), False, Stats(0, 0, 0, 0, 0))
        wanted, width = (min(-(-count * rows // left), max(count, rows)) for count in (ask.k, ask.ef))
        while True:
            found = parts.base.search(
                ask.query, wanted, max(width, wanted), threads=threads, engine=engine, deadline_us=deadline_us
            )
            stays = [number for number, one in enumerate(found.ids.tolist()) if parts.place(one) is not None]
            if len(stays) >= min(ask.k, left) or len(found.ids) < wanted or found.truncated:
                return Result(found.ids[stays], found.distances[stays], found.truncated, found.stats)
            wanted *= 2

    def _among(self, ask: Ask, filter: Filter | None, *, exact: bool = False) -> Result:  # noqa: A002
        parts = self._parts
        gone = parts.gone if self._frozen is None else self._frozen.gone
        if filter is None:
            passing = Passing.of(~gone)
        else:
            passing = parts.base.passing(filter)
            if gone.any():
                passing = Passing.of(passing.allowed & ~gone)
        based = parts.base.among(ask, passing, exact=exact)
        if filter is not None and not len(parts.base):
            mask(parts.columns, filter, 0)  # an unknown column is an error in an empty index too
        found = union(self._among_changes(ask, filter, exact), based, ask.k)
        if filter is None:
            found.stats.matches = None
        return found

    def _among_changes(self, ask: Ask, filter: Filter | None, exact: bool) -> Result:  # noqa: A002
        live, frozen = self._parts.live, self._frozen
        while True:
            turnover = live.turnover
            alive = live.slots()[1] if frozen is None else frozen.alive
            allowed = alive.view(bool).copy()
            if filter is not None:
                count = min(len(alive), len(self._parts.columns))
                allowed[:count] &= mask(self._parts.columns, filter, count)
                allowed[count:] = False

            def search(
                ask: Ask,
                width: int,
                way: int,
                allowed: np.ndarray,
                seeds: np.ndarray,
                probe: int,
                least: float,
                turnover: int = turnover,
            ) -> tuple[np.ndarray, np.ndarray, Any, float]:
                arguments = (ask.query, ask.k, width, ask.deadline_ns, way, ask.ef, allowed, seeds, probe, least)
                labels, gaps, counts, share = live.search_filtered(*arguments, frozen is not None, turnover)
                return labels.astype(np.int64), gaps, counts, share

            try:
                return search_among(search, ask, Passing.of(allowed), len(alive), exact=exact)
            except core.StaleError:
                continue  # slots were freed since they were looked at, and may hold other rows now
            except ValueError as error:
                raise InvalidRequest(f"q: {error}", param="q") from None

    def _place(self, one: int) -> int | None:
        if self._frozen is None:
            return self._parts.place(one)
        place = self._parts.base.place(one)
        return None if place is None or self._frozen.gone[place] else place

    def _slot(self, one: int) -> int | None:
        assert self._frozen is not None, "slots are for what does not change"
        if not 0 <= one < 2**63:
            return None
        found = np.flatnonzero((self._frozen.labels == one) & self._frozen.alive.view(bool))
        return int(found[0]) if len(found) else None

    def _changed_row(self, one: int) -> np.ndarray | None:
        if self._frozen is None:
            found: np.ndarray | None = self._parts.live.get(one) if 0 <= one < 2**63 else None
            return found
        slot = self._slot(one)
        return None if slot is None else np.asarray(self._parts.live.row(slot))


class Snapshot(View):
    """An index as it was when ``LiveIndex.snapshot`` was called, whatever changes since.

    While it is open, slots of deleted rows are not used again: a long one takes room.
    """

    def __init__(self, parts: Parts, generation: int, release: Callable[[], None]) -> None:
        labels, alive = parts.live.slots()
        super().__init__(parts, _Frozen(parts.gone.copy(), labels, alive))
        self.generation = generation
        """Changes before it."""
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        """Let go of the rows that are not in the index any more."""
        if self._release is not None:
            self._release()
            self._release = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _result(named: np.ndarray, gaps: np.ndarray, counts: Any) -> Result:
    return Result(named.astype(np.int64), gaps, counts.truncated, Stats.of(counts))
