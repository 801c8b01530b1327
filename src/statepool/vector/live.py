"""An index that changes while it is searched: rows come, go and are replaced by any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from statepool.core.errors import InvalidRequest, NotFound

from .changes import Change, Kind, decode, encode
from .check import floats, labels, same_width
from .columns import Columns, Values
from .errors import ReadOnlyError
from .file import IndexFile
from .index import Index
from .log import Durability, Lock, Log, Replay, log_path
from .names import Ids
from .native import DTYPES, METRICS, Dtype, Metric, core
from .replay import load
from .settings import ColumnType, Settings
from .view import Layered, Parts, Snapshot, View

__all__ = ["LiveIndex"]

_FEW_DEAD = 256


class LiveIndex(Layered):
    """A built index and a segment for what changed since, searched as one.

    A row is found by every search that begins after ``add`` or ``update`` returned, and by none that begins after
    ``delete`` did. Rows stay reachable whatever is added and deleted around them: each is linked from one neighbour
    that never drops it (the repair of deletions is that of FreshDiskANN, arXiv 2105.09613, section 4).

    One that ``statepool.vector.open(path, "rw")`` made keeps every change in a log before it returns.

    Args:
        dim: Values per vector.
        metric: ``cos``, ``ip`` or ``l2``, as for ``Index``.
        dtype: How vectors are stored.
        R: Most neighbours of a row.
        build_window: Candidates a row's neighbours are chosen from.
        alpha: How much shorter a detour must be to replace an edge; above 1, for a changing graph needs long edges.
        capacity: Changed rows that fit in, deleted ones included, until ``compact``. Memory is taken as it fills.
        seed: Of compactions.
        columns: As for ``Index``.
        text_ids: Whether ids are texts; over a built index it is as there.

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
        columns: Mapping[str, ColumnType] | None = None,
        text_ids: bool = False,
    ) -> None:
        settings = Settings(
            dim,
            metric,
            dtype,
            R,
            build_window,
            seed=seed,
            columns=dict(columns or {}),
            change_alpha=alpha,
            capacity=capacity,
            text_ids=text_ids,
        )
        self._start(Index.of(settings), capacity)

    @classmethod
    def over(cls, index: Index) -> Self:
        """Changes on top of ``index``, which stays as it is and may be a file that was opened."""
        return cls.resume(index, None)

    @classmethod
    def resume(cls, index: Index, replay: Replay | None, *, read_only: bool = False) -> Self:
        """Changes on top of ``index``, those in its log first; with ``read_only`` no others.

        Raises:
            Corruption: the log holds what no index wrote.
        """
        live = cls.__new__(cls)
        changes = [decode(record) for record in replay.records] if replay is not None else []
        changed = sum(len(change.ids) for _, change in changes)
        live._start(index, max(index.settings.capacity, changed))
        load(live._parts, changes)
        live._generation = len(changes) if replay is None else replay.last
        live._replay, live._read_only = replay, read_only
        return live

    def _start(self, index: Index, capacity: int) -> None:
        self.settings = index.settings
        self.dim, self.metric, self.dtype = self.settings.dim, self.settings.metric, self.settings.dtype
        self._parts = self._fresh_parts(index, capacity)
        self._gate = threading.Condition()
        self._writers, self._closed, self._busy = 0, False, set[int]()
        self._snapshots, self._generation = 0, 0
        self._replay: Replay | None = None
        self._read_only = False
        self._path: Path | None = None
        self._log: Log | None = None
        self._lock: Lock | None = None
        self._durability: Durability = "power"

    def keep(self, path: Path, log: Log, lock: Lock, durability: Durability) -> None:
        """From now on every change goes into the log first; ``compact`` writes ``path``."""
        self._path, self._log, self._lock, self._durability = path, log, lock, durability

    def __len__(self) -> int:
        return len(self._parts)

    def add(
        self,
        X: np.ndarray,  # noqa: N803
        ids: Ids,
        *,
        columns: Values | None = None,
        durability: Durability | None = None,
    ) -> int:
        """Add rows, all or none; threads may add at the same time.

        Args:
            X: Rows ``[n, dim]``, any float dtype.
            ids: ``[n]``, 0 to 2^63 - 1, or texts, none of them in the index.
            columns: For every column of the index, one value per row.
            durability: What it has survived when it returns: ``process`` or ``power``. Default the index's.

        Returns:
            n.

        Raises:
            DimensionError: ``X`` is not ``[n, dim]``.
            InvalidRequest: an id that is there already or comes twice, a row that is not finite, columns that do not
                fit, no room left.
            ReadOnlyError: the index was opened with mode ``r``.
            StoreFull, OutcomeUnknown, StoreReadOnly: the log did not take it, see ``Log.append``.
        """
        rows, named = self._rows(X, ids)
        with self._change(named) as parts:
            for one in named.tolist():
                if parts.holds(one):
                    raise InvalidRequest(f"ids: {self._said(one)} is in the index already; update it", param="ids")
            change = Change(named, rows, parts.columns.check(columns, len(rows)))
            if parts.names is not None:
                change.texts = [str(one) for one in ids]
                parts.names.learn(change.texts, named)
            self._do(parts, "add", change, durability)
        return len(named)

    def update(
        self,
        ids: Ids,
        X: np.ndarray,  # noqa: N803
        *,
        columns: Values | None = None,
        durability: Durability | None = None,
    ) -> int:
        """Replace rows and their columns; until the new one answers the old one does.

        Returns:
            How many.

        Raises:
            NotFound: an id that is not in the index; nothing is changed then.
            DimensionError, InvalidRequest, StoreFull, OutcomeUnknown, StoreReadOnly: as for ``add``.
        """
        rows, named = self._rows(X, ids)
        with self._change(named) as parts:
            for one, id_ in zip(named.tolist(), ids, strict=True):
                if not parts.holds(one):
                    raise NotFound(f"ids: {id_} is not in the index; add it", param="ids")
            self._do(parts, "update", Change(named, rows, parts.columns.check(columns, len(rows))), durability)
        return len(named)

    def delete(self, ids: Ids, *, durability: Durability | None = None) -> int:
        """Delete rows; ids that are not there are passed over.

        Every so often a call also takes the deleted rows out of the graph, which takes the longer the larger it is.

        Returns:
            How many were there.

        Raises:
            InvalidRequest: an id twice.
            StoreFull, OutcomeUnknown, StoreReadOnly: as for ``add``.
        """
        named = self._named(ids, np.size(ids))
        with self._change(named) as parts:
            there = named[[parts.holds(one) for one in named.tolist()]] if len(named) else named
            if len(there):
                self._do(parts, "delete", Change(there), durability)
        return len(there)

    def _view(self) -> View:
        return View(self._parts)

    def snapshot(self) -> Snapshot:
        """The index as it is between two changes, to be searched while others go on changing it.

        Use it in a ``with`` statement, or close it: until then slots of deleted rows are not used again.
        """
        with self._no_changes():
            self._snapshots += 1
            return Snapshot(self._parts, self._generation, self._release)

    def _release(self) -> None:
        with self._gate:
            self._snapshots -= 1

    def stats(self) -> dict[str, Any]:
        """Figures: rows, those of the base, those that changed, those deleted but not yet taken out of the graph,
        changes so far, and, of a log, what opening found.
        """
        parts = self._parts
        found: dict[str, Any] = {
            "rows": len(self),
            "dim": self.dim,
            "metric": self.metric,
            "dtype": self.dtype,
            "columns": ", ".join(self.settings.columns) or "none",
            "base_rows": len(parts.base),
            "changed": len(parts.live),
            "gone": int(np.count_nonzero(parts.gone)),
            "dead": parts.live.dead,
            "capacity": parts.live.capacity,
            "generation": self._generation,
        }
        if self._replay is not None:
            found |= {"replayed": len(self._replay.records), "torn_bytes": self._replay.torn}
        return found

    def repair(self) -> int:
        """Take deleted rows out of the graph of changes now; returns how many. Searches and changes go on meanwhile.

        While a snapshot is open, none.
        """
        with self._change(np.empty(0, np.int64)) as parts:
            return 0 if self._snapshots else int(parts.live.repair())

    def compact(self, *, seal: bool = True, threads: int = 0) -> Index:
        """Build one index of all rows and go on over it. Searches go on meanwhile, changes wait.

        An index with a log is written to its file, then the log begins anew; a crash at any moment leaves the old file
        and its log or the new file.

        Args:
            seal: Quantise it, see ``Index.seal``.
            threads: 0 means all cores.

        Returns:
            The index, for example to save it.

        Raises:
            InvalidRequest: there are no rows, and no file to write that to.
            OSError: the disk is full or fails; the index goes on as it was.
        """
        self._writable()
        with self._no_changes():
            parts = self._parts
            named = View(parts).keys()
            if not len(named) and self._path is None:
                raise InvalidRequest("compact: the index is empty; add rows first")
            built = Index.of(self.settings)
            if len(named):
                ids = named if parts.names is None else parts.names.texts(named)
                built.build(self.get(ids), ids, columns=_values(parts, named), threads=threads)
                if seal:
                    built.seal(threads=threads)
            if self._path is not None:
                built = self._replace(built, self._path)
            self._parts = self._fresh_parts(built, self.settings.capacity)
        return built

    def save(self, path: str | Path) -> None:
        """``compact`` and write one file for ``statepool.vector.open``; a crash leaves the old file or the new one.

        Raises:
            InvalidRequest: there are no rows, or the folder cannot be written.
        """
        built = self.compact()
        if self._path is None or self._path.resolve() != Path(path).resolve():
            built.save(path)

    def close(self) -> None:
        """Put what is still in a cache on the disk and let others write. The index can be searched on."""
        if self._log is not None and self._lock is not None:
            with self._no_changes():
                self._log.close()
                self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replace(self, built: Index, path: Path) -> Index:
        """Write the file, then begin the log anew. In between the log holds what the file says it holds too."""
        log = self._log
        assert log is not None, "a path comes with a log"
        log.check()
        built.write(path, {"log": log.index, "lsn": log.last})
        self._log = Log.create(log_path(path), log.index, log.last)
        log.abandon()
        return Index.attach(IndexFile(path))

    def _fresh_parts(self, base: Index, capacity: int) -> Parts:
        settings = self.settings
        live = core.LiveSegment(
            settings.dim,
            METRICS[settings.metric],
            DTYPES[settings.dtype],
            settings.R,
            capacity,
            settings.build_window,
            settings.change_alpha,
        )
        return Parts(base.bare(), live, Columns(settings.columns), np.zeros(len(base), bool), base.names)

    def _do(self, parts: Parts, kind: Kind, change: Change, durability: Durability | None) -> None:
        """Check, log, apply: what is in the log can be applied."""
        if self._log is None and durability is not None:
            raise InvalidRequest("durability: this index has no log; open it with mode 'rw'", param="durability")
        slots = np.empty(0, np.uint32)
        if kind != "delete":
            try:
                parts.live.check(change.rows)
                slots = parts.live.take(len(change.ids))
            except core.FullError:
                raise InvalidRequest(
                    f"X: no room beyond {parts.live.capacity} changed rows; compact the index"
                ) from None
            except ValueError as error:
                raise InvalidRequest(f"X: {error}", param="X") from None
        if self._log is not None:
            try:
                self._log.append(*encode(kind, change), durability or self._durability)
            except BaseException:
                parts.live.give_back(slots)
                raise
        try:
            self._apply(parts, kind, change, slots)
        except BaseException:
            if self._log is not None:
                self._log.fail("a change is in the log and not in the index")
            raise
        with self._gate:
            self._generation += 1

    def _apply(self, parts: Parts, kind: Kind, change: Change, slots: np.ndarray | None = None) -> None:
        named = change.ids
        places = [parts.place(one) for one in named.tolist()]
        based = np.array([place is not None for place in places], dtype=bool)
        gone = [place for place in places if place is not None]
        if kind == "delete":
            parts.gone[gone] = True
            parts.live.erase(named[~based].astype(np.uint64))
            return self._repair_if_due(parts)
        if slots is None:
            slots = parts.live.take(len(named))
        parts.columns.put(slots, change.columns)
        parts.live.add(*_only(change, slots, based if kind == "update" else np.ones(len(named), bool)))
        if kind == "update":
            parts.gone[gone] = True
            parts.live.update(*_only(change, slots, ~based))
            self._repair_if_due(parts)
        return None

    def _writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError("mode: the index was opened with mode 'r'; open it with mode 'rw'", param="mode")

    def _rows(self, X: Any, ids: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        rows = floats("X", X, 2)
        same_width("X", rows.shape[1], self.dim)
        named = self._named(ids, len(rows))
        if len(named) and named.min() < 0:
            raise InvalidRequest(f"ids: {named.min()} is outside 0 to 2^63 - 1", param="ids")
        return rows, named

    def _named(self, ids: Any, count: int) -> np.ndarray:
        names = self._parts.names
        return labels(ids, count) if names is None else names.keys(ids, count)

    def checked(self, ids: Any, count: int) -> np.ndarray:
        """Ids of ``count`` rows as an array of int64, or of texts where the index has those.

        Raises:
            InvalidRequest: one twice, of another kind, or not one per row.
        """
        named = self._named(ids, count)
        return named if self._parts.names is None else np.asarray(ids, dtype=object)

    def _said(self, key: int) -> Any:
        """The id of a row that is there."""
        return key if self._parts.names is None else self._parts.names.texts(np.array([key]))[0]

    def _repair_if_due(self, parts: Parts) -> None:
        if not self._snapshots and parts.live.dead > max(_FEW_DEAD, len(parts.live) // 5):
            parts.live.repair()

    @contextmanager
    def _change(self, named: np.ndarray) -> Iterator[Parts]:
        """No other change of the same ids and no compaction meanwhile: log and index agree on what came first."""
        self._writable()
        ids = set(named.tolist())
        with self._gate:
            self._gate.wait_for(lambda: not self._closed and self._busy.isdisjoint(ids))
            self._writers += 1
            self._busy |= ids
        try:
            yield self._parts
        finally:
            with self._gate:
                self._writers -= 1
                self._busy -= ids
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


def _only(change: Change, slots: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.ascontiguousarray(change.rows[chosen]), change.ids[chosen].astype(np.uint64), slots[chosen]


def _values(parts: Parts, named: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of these rows, wherever they are."""
    labels, alive = parts.live.slots()
    slots = {int(labels[slot]): slot for slot in np.flatnonzero(alive).tolist()}
    changed = np.array([one in slots for one in named.tolist()], dtype=bool)
    found = {}
    fresh = parts.columns.take(np.array([slots[one] for one in named[changed].tolist()], np.int64))
    based = parts.base.columns.take(np.array([parts.base.place(one) for one in named[~changed].tolist()], np.int64))
    for name in parts.columns.types:
        found[name] = np.empty(len(named), fresh[name].dtype)
        found[name][changed], found[name][~changed] = fresh[name], based[name]
    return found
