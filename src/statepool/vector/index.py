"""The index: what a user builds, asks and keeps."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from copy import copy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from statepool.core.errors import InvalidRequest, NotFound

from .answer import Result, Stats
from .calibration import Calibrated
from .check import cores, floats, labels, one_of, same_width, within
from .columns import Columns, Values
from .errors import IndexCorruptError, ReadOnlyError
from .file import IndexFile, sync_folder, write
from .filtered import Ask, Passing, search_among
from .filters import mask
from .log import Lock, log_path
from .names import Ids, Names, are_texts
from .native import DTYPES, ENGINES, METRICS, Dtype, EngineName, Metric, core
from .policy import MOMENT_NS, choose_engine, choose_period, most_worth
from .searching import Filter
from .settings import ColumnType, Settings

__all__ = ["MOST_THREADS", "Index"]

MOST_THREADS = 64
"""Most threads of one query."""

_PERIODS = [bytes(choose_period(max(1, n), sealed) for n in range(MOST_THREADS + 1)) for sealed in (False, True)]


@cache
def _cores() -> Any:
    """The cores of this process, which all indices share."""
    return core.Cores(cores(0), MOMENT_NS)


os.register_at_fork(after_in_child=_cores.cache_clear)  # none of the searches of its parent run there

_MASKS = 16
"""Filters whose rows are remembered."""


class Index(Calibrated):
    """Vectors and a graph over them (Vamana), searched best-first.

    Args:
        dim: Values per vector.
        metric: ``cos`` (1 - cosine), ``ip`` (minus the inner product) or ``l2`` (squared distance).
        dtype: How vectors are stored: ``f32``, ``f16``, ``bf16`` or ``i8``.
        R: Most neighbours of a node.
        build_window: Candidates a node's neighbours are chosen from.
        alpha: How much shorter a detour must be to replace an edge; at least 1.
        seed: Order of insertion.
        columns: Per column of values beside the vectors ``str``, ``i64`` or ``f64``; filters speak of them.

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
        alpha: float = 1.0,
        seed: int = 0,
        columns: Mapping[str, ColumnType] | None = None,
    ) -> None:
        self._start(Settings(dim, metric, dtype, R, build_window, alpha, seed, dict(columns or {})))

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """An empty index with these settings."""
        index = cls.__new__(cls)
        index._start(settings)
        return index

    def _start(self, settings: Settings) -> None:
        self.settings = settings
        self.dim, self.metric, self.dtype = settings.dim, settings.metric, settings.dtype
        self._core = core.Index(self.dim, METRICS[self.metric], DTYPES[self.dtype], settings.R)
        self.columns = Columns(settings.columns)
        self._masks: OrderedDict[str, Passing] = OrderedDict()
        self._ids: np.ndarray | None = None
        self.names = Names() if settings.text_ids else None
        self._file: IndexFile | None = None
        self._held: dict[str, np.ndarray] = {}
        self._places: dict[int, int] | None = None
        self._sealed = False

    def __len__(self) -> int:
        return len(self._core)

    def build(
        self,
        X: np.ndarray,  # noqa: N803
        ids: Ids | None = None,
        *,
        columns: Values | None = None,
        threads: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Replace all rows by ``X`` and link them. The graph does not depend on the number of threads.

        Args:
            X: Rows ``[n, dim]``, any float dtype.
            ids: int64 ``[n]`` or ``n`` texts, what searches answer with; default 0 … n-1.
            columns: For every column of the index, one value per row.
            threads: 0 means all cores.
            progress: Called several times a second with the number of rows that are linked.

        Raises:
            DimensionError: ``X`` is not ``[n, dim]``.
            ReadOnlyError: The index was opened with mode ``r``.
            InvalidRequest: a row with NaN or infinity, a zero row under ``cos``, ids that repeat or do not match,
                columns that do not fit.
        """
        self._writable("build")
        rows = floats("X", X, 2)
        same_width("X", rows.shape[1], self.dim)
        names = Names() if self.settings.text_ids or are_texts(ids) else None
        named: np.ndarray | None
        if names is not None:
            named = names.keys([] if ids is None else ids, len(rows))
            names.learn(np.asarray(ids, dtype=object), named)
        else:
            named = None if ids is None else labels(ids, len(rows))
        values = self.columns.check(columns, len(rows))
        settings = replace(self.settings, text_ids=names is not None)
        try:
            arguments = (rows, settings.build_window, settings.alpha, cores(threads), settings.seed)
            if progress is None:
                self._core.build(*arguments)
            else:
                self._build_and_tell(arguments, progress)
        except ValueError as error:
            raise InvalidRequest(f"X: {error}", param="X") from None
        self._ids, self._held, self._sealed, self._places = named, {}, False, None
        self.settings, self.names = settings, names
        self.columns = Columns(settings.columns)
        self.columns.put(np.arange(len(rows)), values)
        self._masks.clear()
        self._widths.clear()

    def _build_and_tell(self, arguments: tuple[Any, ...], progress: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(self._core.build, *arguments)
            while wait([work], timeout=0.2).not_done:
                progress(self._core.built)
            work.result()
        progress(len(self))

    def seal(self, *, threads: int = 0) -> None:
        """Quantise every node's neighbours to one bit per dimension; searches are faster from then on.

        Answers keep their stored precision: what the codes find is measured again.

        Raises:
            InvalidRequest: nothing was built yet.
        """
        self._writable("seal")
        if not len(self):
            raise InvalidRequest("seal: the index is empty; build it first")
        self._core.seal(cores(threads), self.settings.seed)
        self._sealed = True
        self._widths.clear()

    def search(
        self,
        q: np.ndarray,
        k: int = 10,
        ef: int | None = None,
        *,
        recall: float | None = None,
        threads: int | Literal["auto"] = 1,
        engine: EngineName = "auto",
        deadline_us: float | None = None,
        filter: Filter | None = None,  # noqa: A002 - the name of the literature
        return_vectors: bool = False,
    ) -> Result:
        """The ``k`` rows nearest to ``q``, approximately.

        Args:
            q: ``[dim]``, any float dtype.
            k: Rows wanted, at least 1.
            ef: Candidates kept while searching; more find more and take longer. Default ``max(64, 2 k)``.
            recall: Instead of ``ef``: the share of the true ``k`` nearest to find, between 0 and 1. The first search
                that asks for it takes as long as 128 exact ones, to calibrate on queries made of the index's own rows;
                queries farther from the rows find less, and ``calibrate`` with some of them is better then.
            threads: Threads for this one query, 1 to 64, or ``auto``: the cores that are idle now. Only 1, the default,
                explores the same rows every time; with more, an answer near the edge of recall may vary between runs.
            engine: How they work together; ``auto`` takes what is best for their number.
            deadline_us: Answer with the best so far after this many microseconds.
            filter: Only rows that pass, see ``statepool.vector.filters``; answers then come from one thread, and
                ``stats.path`` tells how they were looked for. ``recall`` then is that of a search without.
            return_vectors: Whether the answer has the vectors of its rows too, as ``get`` gives them.

        Raises:
            DimensionError: ``q`` is not ``[dim]``.
            InvalidRequest: ``k > ef``, a recall that is not reached, an argument out of its range, or values that
                are not finite.
            FilterError: an unknown column, or a value of another type.
        """
        width = self._width(k, ef, recall)
        one_of("engine", engine, ENGINES)
        if threads != "auto":
            within("threads", threads, 1, MOST_THREADS)
        deadline = 0 if deadline_us is None else max(1, int(deadline_us * 1000))
        query = self._query(q)
        if filter is None:
            found = self._nearest(query, k, width, threads, engine, deadline)
        else:
            found = self.among(Ask(query, k, width, deadline), self.passing(filter))
        if return_vectors:
            found.vectors = self.get(found.ids)
        return found

    def _nearest(
        self, query: np.ndarray, k: int, width: int, threads: int | Literal["auto"], engine: EngineName, deadline: int
    ) -> Result:
        if threads == "auto":
            most = min(MOST_THREADS, most_worth(self.dim, width, self._sealed))
            number = ENGINES["async" if engine == "auto" else engine]
            arguments = (query, k, width, most, number, deadline, _PERIODS[self._sealed], _cores())
            return self._result(self._run(self._core.search_auto, *arguments))
        number = ENGINES[choose_engine(threads) if engine == "auto" else engine]
        period = choose_period(threads, self._sealed)
        return self._result(self._run(self._core.search, query, k, width, threads, number, deadline, period, 0))

    def _run(self, search: Callable[..., Any], *arguments: Any) -> Any:
        """What a search of the core answers, its errors as ours."""
        try:
            return search(*arguments)
        except ValueError as error:
            raise InvalidRequest(f"q: {error}", param="q") from None
        except core.DamageError:
            raise self._damage() from None

    def exact(self, q: np.ndarray, k: int = 10, *, filter: Filter | None = None) -> Result:  # noqa: A002
        """The ``k`` rows nearest to ``q``, by looking at every row, or at every row that passes.

        Raises:
            DimensionError: ``q`` is not ``[dim]``.
            InvalidRequest: ``k`` below 1, or values that are not finite.
            FilterError: an unknown column, or a value of another type.
        """
        within("k", k, 1, 2**31 - 1)
        if filter is not None:
            return self.among(Ask(self._query(q), k, k), self.passing(filter), exact=True)
        return self._result(self._run(self._core.exact, self._query(q), k))

    def passing(self, filter: Filter) -> Passing:  # noqa: A002
        """The rows that pass, in the order they were built in.

        Raises:
            FilterError: an unknown column, or a value of another type.
        """
        key = json.dumps(filter, sort_keys=True, default=repr)
        found = self._masks.get(key)
        if found is None:
            found = self._masks[key] = Passing.of(mask(self.columns, filter, len(self)))
            while len(self._masks) > _MASKS:
                self._masks.popitem(last=False)
        return found

    def among(self, ask: Ask, passing: Passing, *, exact: bool = False) -> Result:
        """The nearest of the rows that are allowed, by their places in the order they were built in."""

        def search(
            ask: Ask, width: int, way: int, allowed: np.ndarray, seeds: np.ndarray, probe: int, least: float
        ) -> Any:
            (places, gaps, counts), share = self._core.search_filtered(
                ask.query, ask.k, width, ask.deadline_ns, way, ask.ef, allowed, seeds, probe, least
            )
            return self._named(places), gaps, counts, share

        found = self._run(partial(search_among, exact=exact, sealed=self._sealed), search, ask, passing, len(self))
        assert isinstance(found, Result)
        return found

    def bare(self) -> Self:
        """The same index with numbers for text ids, see ``statepool.vector.names``."""
        found = copy(self)
        found.names = None
        return found

    def ids(self) -> np.ndarray:
        """Of all rows, int64 ``[n]`` or texts, in the order they were built in."""
        return self._named(np.arange(len(self)))

    def _named(self, places: np.ndarray) -> np.ndarray:
        found: np.ndarray = places if self._ids is None else self._ids[places]
        return found if self.names is None else self.names.texts(found)

    def __contains__(self, one: int | str) -> bool:
        return self._place(one) is not None

    def _place(self, one: Any) -> int | None:
        return self.place(one if self.names is None else self.names.key(one))

    def get(self, ids: Ids) -> np.ndarray:
        """The vectors of rows as they are stored, float32 ``[len(ids), dim]``; under ``cos`` they have length 1.

        Raises:
            NotFound: an id that is not in the index.
        """
        places = [self._place(one) for one in ids]
        for one, place in zip(ids, places, strict=True):
            if place is None:
                raise NotFound(f"ids: {one} is not in the index", param="ids")
        return self._decoded([place for place in places if place is not None])

    def place(self, one: int) -> int | None:
        """Where a row is in the order they were built in, by its number; None if it is not there."""
        if self._ids is None:
            return one if 0 <= one < len(self) else None
        if self._places is None:
            self._places = {int(label): place for place, label in enumerate(self._ids)}
        return self._places.get(one)

    def _decoded(self, places: list[int]) -> np.ndarray:
        if not places:
            return np.empty((0, self.dim), np.float32)
        rows = self._core.arrays()[0]
        if self._file is not None:
            begin, stride = self._file.sections["rows"].offset, rows.shape[1]
            for place in places:
                self._file.touch(begin + place * stride, stride)
        raw = np.ascontiguousarray(rows[places])
        width = -(-(self.dim + (self.metric == "ip")) // 16) * 16
        if self.dtype == "bf16":
            bits = raw[:, : 2 * width].view(np.uint16).astype(np.uint32) << 16
            return bits.view(np.float32)[:, : self.dim]
        if self.dtype == "i8":
            scales = np.ascontiguousarray(raw[:, width : width + 4]).view(np.float32)
            return raw[:, : self.dim].view(np.int8).astype(np.float32) * scales
        kind = np.dtype(np.float32 if self.dtype == "f32" else np.float16)
        stored = np.ascontiguousarray(raw[:, : kind.itemsize * width]).view(kind)
        return stored[:, : self.dim].astype(np.float32)

    def stats(self) -> dict[str, Any]:
        """Figures of the index: rows, settings, bytes of vectors, links and codes."""
        found: dict[str, Any] = {"rows": len(self), "dim": self.dim, "metric": self.metric, "dtype": self.dtype}
        found |= {"R": self.settings.R, "sealed": self._sealed, "columns": ", ".join(self.columns.types) or "none"}
        if len(self):
            rows, links, entries, _ = self._core.arrays()
            sealed = self._core.sealed()
            found |= {"vector_bytes": rows.nbytes, "link_bytes": links.nbytes, "entries": len(entries)}
            found["code_bytes"] = 0 if sealed is None else sealed[0].nbytes
            found["edges"] = int(np.count_nonzero(links != 0xFFFFFFFF))
        return found

    def graph(self) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of every row, uint32 ``[n, R]`` filled up with 0xffffffff, and the entries, as positions of rows.

        Raises:
            InvalidRequest: nothing was built yet.
        """
        if not len(self):
            raise InvalidRequest("graph: the index is empty; build it first")
        _, links, entries, _ = self._core.arrays()
        return links, entries

    def distances(self, q: np.ndarray) -> np.ndarray:
        """Of ``q`` to every row, float32 ``[n]``, in the order the rows were built in.

        Raises:
            DimensionError: ``q`` is not ``[dim]``.
        """
        positions, found, _ = self._core.exact(self._query(q), max(1, len(self)))
        ordered = np.empty(len(positions), dtype=np.float32)
        ordered[positions] = found
        return ordered

    def save(self, path: str | Path) -> None:
        """Write the index to one file; a crash leaves the old file or the new one.

        A log of changes to what was there before goes with it.

        Raises:
            InvalidRequest: nothing was built yet, or the folder cannot be written.
            StoreLocked: somebody has the index that is there open for changes.
            OSError: the disk is full or fails.
        """
        if not len(self):
            raise InvalidRequest("save: the index is empty; build it first")
        path = Path(path)
        if not log_path(path).exists():
            return self.write(path, {})
        lock = Lock(path)
        try:
            self.write(path, {})
            log_path(path).unlink()
            return sync_folder(path.parent)
        finally:
            lock.close()

    def write(self, path: Path, more: Mapping[str, Any]) -> None:
        """Write the index to one file, with ``more`` in its header; a crash leaves the old file or the new one.

        Raises:
            InvalidRequest: the folder cannot be written.
            OSError: the disk is full or fails.
        """
        head: dict[str, Any] = {"settings": self.settings.plain(), "rows": len(self), **more}
        if not len(self):
            return write(path, head, {})
        rows, links, entries, head["norm"] = self._core.arrays()
        arrays = {"rows": rows, "links": links, "entries": entries, **self.columns.sections(len(self))}
        if self._ids is not None:
            arrays["ids"] = self._ids
        if self._ids is not None and self.names is not None:
            arrays |= self.names.sections(self._ids)
        sealed = self._core.sealed()
        if sealed is not None:
            arrays["sealed"] = sealed[0]
            head |= {"unit": sealed[1], "seal_seed": sealed[2]}
        return write(path, head, arrays)

    @classmethod
    def attach(cls, file: IndexFile) -> Self:
        """The index in ``file``, on its pages.

        Raises:
            IndexCorruptError: the header contradicts the sections.
        """
        head = file.head
        try:
            index = cls.of(Settings(**head["settings"]))
            arrays = {name: file.array(name) for name in file.sections}
            unit, seed = float(head.get("unit", 1.0)), int(head.get("seal_seed", 0))
            index._file = file
            if not head["rows"]:
                return index
            rows, links, entries = arrays["rows"], arrays["links"], arrays["entries"]
            index._core.attach(rows, links, entries, float(head["norm"]), arrays.get("sealed"), unit, seed, file.guard)
            index.columns = Columns.of(index.settings.columns, arrays, len(index))
            index.names = Names.of(arrays) if index.settings.text_ids else None
        except (ValueError, KeyError, TypeError, IndexError, InvalidRequest) as error:
            raise IndexCorruptError(f"{file.path}: header: contradicts its sections ({error})", "header", 0) from error
        index._ids, index._held, index._sealed = arrays.get("ids"), arrays, "sealed" in arrays
        return index

    def _writable(self, what: str) -> None:
        if self._file is not None:
            raise ReadOnlyError(f"{what}: {self._file.path} is open; make a new Index and save it there")

    def _damage(self) -> IndexCorruptError:
        assert self._file is not None, "only files are guarded"
        return self._file.damage()

    def _result(self, found: tuple[np.ndarray, np.ndarray, Any]) -> Result:
        positions, distances, counts = found
        return Result(self._named(positions), distances, counts.truncated, Stats.of(counts))
