"""The index: what a user builds, asks and keeps."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from statepool.core.errors import InvalidRequest

from .errors import DimensionError, IndexCorruptError
from .native import DTYPES, ENGINES, METRICS, Dtype, EngineName, Metric, core
from .policy import Load, choose_engine, choose_threads

__all__ = ["Index", "Result", "Stats"]


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
        _one_of("metric", metric, METRICS)
        _one_of("dtype", dtype, DTYPES)
        _within("dim", dim, 1, 65536)
        _within("R", R, 16, 128)
        _within("build_window", build_window, R, 10_000)
        if R % 16:
            raise InvalidRequest(f"R: {R} is no multiple of 16", param="R")
        if not 1.0 <= alpha <= 4.0:
            raise InvalidRequest(f"alpha: {alpha} is outside 1 to 4", param="alpha")
        self.dim, self.metric, self.dtype = dim, metric, dtype
        self._settings = {"R": R, "build_window": build_window, "alpha": alpha, "seed": seed}
        self._core = core.Index(dim, METRICS[metric], DTYPES[dtype], R)
        self._ids: np.ndarray | None = None
        self._sealed = False

    def __len__(self) -> int:
        return len(self._core)

    def build(self, X: np.ndarray, ids: np.ndarray | None = None, *, threads: int = 0) -> None:  # noqa: N803
        """Replace all rows by ``X`` and link them. The graph does not depend on the number of threads.

        Args:
            X: Rows ``[n, dim]``, any float dtype.
            ids: int64 ``[n]``, what searches answer with; default 0 … n-1.
            threads: 0 means all cores.

        Raises:
            DimensionError: ``X`` is not ``[n, dim]``.
            InvalidRequest: a row with NaN or infinity, a zero row under ``cos``, ids that repeat or do not match.
        """
        rows = _floats("X", X, 2)
        _same_width("X", rows.shape[1], self.dim)
        labels = None if ids is None else _labels(ids, len(rows))
        settings = self._settings
        try:
            self._core.build(rows, settings["build_window"], settings["alpha"], _cores(threads), settings["seed"])
        except ValueError as error:
            raise InvalidRequest(f"X: {error}", param="X") from None
        self._ids, self._sealed = labels, False

    def seal(self, *, threads: int = 0) -> None:
        """Quantise every node's neighbours to one bit per dimension; searches are faster from then on.

        Answers keep their stored precision: what the codes find is measured again.

        Raises:
            InvalidRequest: nothing was built yet.
        """
        if not len(self):
            raise InvalidRequest("seal: the index is empty; build it first")
        self._core.seal(_cores(threads), self._settings["seed"])
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
        _one_of("engine", engine, ENGINES)
        if threads == "auto":
            cores = os.cpu_count() or 1
            threads = choose_threads(Load(cores, core.busy(), waiting=0), min(cores, MOST_THREADS))
        _within("threads", threads, 1, MOST_THREADS)
        if engine == "auto":
            engine = choose_engine(threads, self._sealed)
        wait = 0 if deadline_us is None else max(1, int(deadline_us * 1000))
        query = self._query(q)
        try:
            found = self._core.search(query, k, width, threads, ENGINES[engine], wait, 8, 0)
        except ValueError as error:
            raise InvalidRequest(f"q: {error}", param="q") from None
        return self._result(found)

    def exact(self, q: np.ndarray, k: int = 10) -> Result:
        """The ``k`` rows nearest to ``q``, by looking at every row.

        Raises:
            DimensionError: ``q`` is not ``[dim]``.
            InvalidRequest: ``k`` below 1, or values that are not finite.
        """
        _within("k", k, 1, 2**31)
        try:
            found = self._core.exact(self._query(q), k)
        except ValueError as error:
            raise InvalidRequest(f"q: {error}", param="q") from None
        return self._result(found)

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
        """Write the index to one file.

        Raises:
            InvalidRequest: nothing was built yet.
        """
        if not len(self):
            raise InvalidRequest("save: the index is empty; build it first")
        rows, links, entries, norm = self._core.arrays()
        head = {"dim": self.dim, "metric": self.metric, "dtype": self.dtype} | self._settings
        ids = np.arange(len(self)) if self._ids is None else self._ids
        with Path(path).open("wb") as file:
            np.savez(
                file, head=json.dumps(head), rows=rows, links=links, entries=entries, norm=np.float32(norm), ids=ids
            )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            IndexCorruptError: the file is no index, or its parts contradict each other.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as parts:
                index = cls(**json.loads(str(parts["head"])))
                index._core.adopt(parts["rows"], parts["links"], parts["entries"], float(parts["norm"]))
                index._ids = _labels(parts["ids"], len(index))
        except (ValueError, KeyError, IndexError, TypeError, EOFError, InvalidRequest, zipfile.BadZipFile) as error:
            raise IndexCorruptError(f"{path}: is no index or is damaged ({error})") from error
        return index

    def _query(self, q: np.ndarray) -> np.ndarray:
        query = _floats("q", q, 1)
        _same_width("q", query.shape[0], self.dim)
        return query

    def _result(self, found: tuple[np.ndarray, np.ndarray, Any]) -> Result:
        positions, distances, counts = found
        ids = positions if self._ids is None else self._ids[positions]
        stats = Stats(counts.ndc, counts.ndc_max, counts.hops, counts.thresholds, counts.threads)
        return Result(ids, distances, counts.truncated, stats)


def _floats(name: str, array: Any, axes: int) -> np.ndarray:
    """As C-contiguous float32, without a copy where it is that already."""
    found = np.asarray(array)
    if found.dtype.kind not in "fiu":
        raise InvalidRequest(f"{name}: dtype {found.dtype} is not numeric; pass floats", param=name)
    if found.ndim != axes:
        raise DimensionError(f"{name}: has {found.ndim} axes, not {axes}", param=name)
    return np.ascontiguousarray(found, dtype=np.float32)


def _same_width(name: str, got: int, dim: int) -> None:
    if got != dim:
        raise DimensionError(f"{name}: has {got} values per vector; the index has {dim}", param=name)


def _labels(ids: Any, count: int) -> np.ndarray:
    labels = np.asarray(ids)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise InvalidRequest(f"ids: must be {count} integers, one per row of X", param="ids")
    if len(np.unique(labels)) != count:
        raise InvalidRequest("ids: an id occurs twice; every row needs its own", param="ids")
    return labels.astype(np.int64)


def _cores(threads: int) -> int:
    _within("threads", threads, 0, 1024)
    return threads or os.cpu_count() or 1


def _one_of(name: str, value: str, known: dict[str, int]) -> None:
    if value not in known:
        raise InvalidRequest(f"{name}: '{value}' is none of {', '.join(known)}", param=name)


def _within(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or not least <= value <= most:
        raise InvalidRequest(f"{name}: {value!r} is no integer from {least} to {most}", param=name)
