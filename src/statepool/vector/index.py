"""The index: what a user builds, asks and keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from statepool.core.errors import InvalidRequest, NotFound

from .check import cores, floats, labels, one_of, same_width, within
from .errors import IndexCorruptError, ReadOnlyError
from .file import IndexFile, Verify, write
from .native import DTYPES, ENGINES, METRICS, Dtype, EngineName, Metric, core
from .policy import Load, choose_engine, choose_threads, most_worth

__all__ = ["Index", "Result", "Stats", "open"]


MOST_THREADS = 64
"""Most threads of one query."""


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


@dataclass(slots=True)
class Result:
    """The nearest rows, nearest first; fewer than ``k`` if the index holds fewer."""

    ids: np.ndarray
    """int64 ``[<= k]``."""
    distances: np.ndarray
    """float32 ``[<= k]``, in the unit of the metric."""
    truncated: bool
    """The deadline came first: better rows may have been missed."""
    stats: Stats


class Index:
    """Vectors and a graph over them (Vamana), searched best-first.

    Args:
        dim: Values per vector.
        metric: ``cos`` (1 - cosine), ``ip`` (minus the inner product) or ``l2`` (squared distance).
        dtype: How vectors are stored: ``f32``, ``f16``, ``bf16`` or ``i8``.
        R: Most neighbours of a node.
        build_window: Candidates a node's neighbours are chosen from.
        alpha: How much shorter a detour must be to replace an edge; at least 1.
        seed: Order of insertion.

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
    ) -> None:
        one_of("metric", metric, METRICS)
        one_of("dtype", dtype, DTYPES)
        within("dim", dim, 1, 65536)
        within("R", R, 16, 128)
        within("build_window", build_window, R, 10_000)
        if R % 16:
            raise InvalidRequest(f"R: {R} is no multiple of 16", param="R")
        if not 1.0 <= alpha <= 4.0:
            raise InvalidRequest(f"alpha: {alpha} is outside 1 to 4", param="alpha")
        self.dim, self.metric, self.dtype = dim, metric, dtype
        self._settings = {"R": R, "build_window": build_window, "alpha": alpha, "seed": seed}
        self._core = core.Index(dim, METRICS[metric], DTYPES[dtype], R)
        self._ids: np.ndarray | None = None
        self._file: IndexFile | None = None
        self._held: dict[str, np.ndarray] = {}
        self._places: dict[int, int] | None = None
        self._sealed = False

    def __len__(self) -> int:
        return len(self._core)

    def build(
        self,
        X: np.ndarray,  # noqa: N803
        ids: np.ndarray | None = None,
        *,
        threads: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Replace all rows by ``X`` and link them. The graph does not depend on the number of threads.

        Args:
            X: Rows ``[n, dim]``, any float dtype.
            ids: int64 ``[n]``, what searches answer with; default 0 … n-1.
            threads: 0 means all cores.
            progress: Called several times a second with the number of rows that are linked.

        Raises:
            DimensionError: ``X`` is not ``[n, dim]``.
            ReadOnlyError: The index was opened with mode ``r``.
            InvalidRequest: a row with NaN or infinity, a zero row under ``cos``, ids that repeat or do not match.
        """
        self._writable("build")
        rows = floats("X", X, 2)
        same_width("X", rows.shape[1], self.dim)
        named = None if ids is None else labels(ids, len(rows))
        settings = self._settings
        try:
            arguments = (rows, settings["build_window"], settings["alpha"], cores(threads), settings["seed"])
            if progress is None:
                self._core.build(*arguments)
            else:
                self._build_and_tell(arguments, progress)
        except ValueError as error:
            raise InvalidRequest(f"X: {error}", param="X") from None
        self._ids, self._held, self._sealed, self._places = named, {}, False, None

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
        self._core.seal(cores(threads), self._settings["seed"])
        self._sealed = True

    def search(
        self,
        q: np.ndarray,
        k: int = 10,
        ef: int | None = None,
        *,
        threads: int | Literal["auto"] = 1,
        engine: EngineName = "auto",
        deadline_us: float | None = None,
    ) -> Result:
        """The ``k`` rows nearest to ``q``, approximately.

        Args:
            q: ``[dim]``, any float dtype.
            k: Rows wanted, at least 1.
            ef: Candidates kept while searching; more find more and take longer. Default ``max(64, 2 k)``.
            threads: Threads for this one query, 1 to 64, or ``auto``: the cores that are idle now. Only 1, the default,
                explores the same rows every time; with more, an answer near the edge of recall may vary between runs.
            engine: How they work together; ``auto`` takes what is best for their number.
            deadline_us: Answer with the best so far after this many microseconds.

        Raises:
            DimensionError: ``q`` is not ``[dim]``.
            InvalidRequest: ``k > ef``, an argument out of its range, or values that are not finite.
        """
        width = max(64, 2 * k) if ef is None else ef
        if not 1 <= k <= width:
            raise InvalidRequest(f"k: {k} is outside 1 to ef ({width}); raise ef", param="k")
        one_of("engine", engine, ENGINES)
        if threads == "auto":
            most = cores(0)
            worth = most_worth(self.dim, width, self._sealed)
            threads = choose_threads(Load(most, core.busy(), waiting=0), min(most, MOST_THREADS, worth))
        within("threads", threads, 1, MOST_THREADS)
        if engine == "auto":
            engine = choose_engine(threads, self._sealed)
        deadline = 0 if deadline_us is None else max(1, int(deadline_us * 1000))
        query = self._query(q)
        try:
            found = self._core.search(query, k, width, threads, ENGINES[engine], deadline, 8, 0)
        except ValueError as error:
            raise InvalidRequest(f"q: {error}", param="q") from None
        except core.DamageError:
            raise self._damage() from None
        return self._result(found)

    def exact(self, q: np.ndarray, k: int = 10) -> Result:
        """The ``k`` rows nearest to ``q``, by looking at every row.

        Raises:
            DimensionError: ``q`` is not ``[dim]``.
            InvalidRequest: ``k`` below 1, or values that are not finite.
        """
        within("k", k, 1, 2**31)
        try:
            found = self._core.exact(self._query(q), k)
        except ValueError as error:
            raise InvalidRequest(f"q: {error}", param="q") from None
        except core.DamageError:
            raise self._damage() from None
        return self._result(found)

    def search_batch(
        self,
        Q: np.ndarray,  # noqa: N803
        k: int = 10,
        ef: int | None = None,
        *,
        workers: int = 0,
    ) -> list[Result]:
        """``search`` for every row of ``Q`` ``[m, dim]``, one thread per query, several queries at once.

        Args:
            workers: Queries at once; 0 means all cores. Answers do not depend on it.

        Raises:
            DimensionError: ``Q`` is not ``[m, dim]``.
            InvalidRequest: as ``search``.
        """
        queries = floats("Q", Q, 2)
        same_width("Q", queries.shape[1], self.dim)
        with ThreadPoolExecutor(cores(workers)) as pool:
            return list(pool.map(lambda query: self.search(query, k, ef), queries))

    def range_search(self, q: np.ndarray, radius: float, ef: int = 64) -> Result:
        """The rows within ``radius`` of ``q``, nearest first, approximately.

        Widens the search until the farthest candidate lies outside.

        Args:
            q: ``[dim]``.
            radius: Largest distance, in the unit of the metric.
            ef: Candidates of the first search.

        Raises:
            DimensionError: ``q`` is not ``[dim]``.
            InvalidRequest: ``radius`` is not finite, or as ``search``.
        """
        if not np.isfinite(radius):
            raise InvalidRequest(f"radius: {radius} is not finite", param="radius")
        within("ef", ef, 1, 2**31)
        while True:
            found = self.search(q, ef, ef)
            inside = int(np.searchsorted(found.distances, radius, side="right"))
            if inside < len(found.ids) or ef >= len(self):
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
        queries = floats("Q", Q, 2)
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

    def ids(self) -> np.ndarray:
        """Of all rows, int64 ``[n]``, in the order they were built in."""
        return np.arange(len(self)) if self._ids is None else self._ids.copy()

    def __contains__(self, one: int) -> bool:
        return len(self) > 0 and self._position(one) is not None

    def get(self, ids: Sequence[int]) -> np.ndarray:
        """The vectors of rows as they are stored, float32 ``[len(ids), dim]``; under ``cos`` they have length 1.

        Raises:
            NotFound: an id that is not in the index.
        """
        places = [self._position(one) for one in ids]
        for one, place in zip(ids, places, strict=True):
            if place is None:
                raise NotFound(f"ids: {one} is not in the index", param="ids")
        return self._decoded([place for place in places if place is not None])

    def _position(self, one: int) -> int | None:
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
        found |= {"R": self._settings["R"], "sealed": self._sealed}
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

        Raises:
            InvalidRequest: nothing was built yet, or the folder cannot be written.
            OSError: the disk is full or fails.
        """
        if not len(self):
            raise InvalidRequest("save: the index is empty; build it first")
        rows, links, entries, norm = self._core.arrays()
        settings = {"dim": self.dim, "metric": self.metric, "dtype": self.dtype} | self._settings
        head: dict[str, Any] = {"settings": settings, "rows": len(self), "norm": norm}
        arrays = {"rows": rows, "links": links, "entries": entries}
        if self._ids is not None:
            arrays["ids"] = self._ids
        sealed = self._core.sealed()
        if sealed is not None:
            arrays["sealed"] = sealed[0]
            head |= {"unit": sealed[1], "seal_seed": sealed[2]}
        write(Path(path), head, arrays)

    @classmethod
    def _attach(cls, file: IndexFile, *, copy: bool) -> Self:
        """The index in ``file``: on its pages, or on copies of them."""
        head, names = file.head, ("rows", "links", "entries", "sealed", "ids")
        try:
            index = cls(**head["settings"])
            found = {name: file.array(name) for name in names if name in file.sections}
            arrays = {name: array.copy() for name, array in found.items()} if copy else found
            unit, seed = float(head.get("unit", 1.0)), int(head.get("seal_seed", 0))
            guard = None if copy else file.guard
            rows, links, entries = arrays["rows"], arrays["links"], arrays["entries"]
            index._core.attach(rows, links, entries, float(head["norm"]), arrays.get("sealed"), unit, seed, guard)
        except (ValueError, KeyError, TypeError, IndexError, InvalidRequest) as error:
            raise IndexCorruptError(f"{file.path}: header: contradicts its sections ({error})", "header", 0) from error
        index._ids, index._held, index._sealed = arrays.get("ids"), arrays, "sealed" in arrays
        if not copy:
            index._file = file
        return index

    def _writable(self, what: str) -> None:
        if self._file is not None:
            raise ReadOnlyError(f"{what}: {self._file.path} was opened with mode 'r'; open it with mode 'rw'")

    def _damage(self) -> IndexCorruptError:
        assert self._file is not None, "only files are guarded"
        return self._file.damage()

    def _query(self, q: np.ndarray) -> np.ndarray:
        query = floats("q", q, 1)
        same_width("q", query.shape[0], self.dim)
        return query

    def _result(self, found: tuple[np.ndarray, np.ndarray, Any]) -> Result:
        positions, distances, counts = found
        ids = positions if self._ids is None else self._ids[positions]
        stats = Stats(counts.ndc, counts.ndc_max, counts.hops, counts.thresholds, counts.threads)
        return Result(ids, distances, counts.truncated, stats)


def open(  # noqa: A001 - the name users know from files
    path: str | Path, mode: Literal["r", "rw"] = "r", *, mmap: bool = True, verify: Verify = "lazy"
) -> Index:
    """The index that ``Index.save`` wrote.

    Args:
        path: The file.
        mode: ``r`` searches the file in place; ``rw`` reads all of it, so that it can be built and sealed again.
        mmap: Map the file; else read it, which checks all of it.
        verify: ``lazy`` checks each 64 KiB when a search first reads it, ``full`` all now, ``off`` none.

    Raises:
        FileNotFoundError: there is no such file.
        IndexCorruptError: the file is no index, or is damaged; with ``lazy``, searches raise it too.
        InvalidRequest: an unknown mode, or a file of a newer version.
    """
    one_of("mode", mode, {"r": 0, "rw": 1})
    one_of("verify", verify, {"lazy": 0, "full": 1, "off": 2})
    file = IndexFile(Path(path), mmap=mmap, verify="full" if mode == "rw" else verify)
    return Index._attach(file, copy=mode == "rw")
