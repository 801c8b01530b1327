"""A wave index over one layer of one context: it grows by segments and answers decode steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidRequest
from statepool.engine.attention.wave.certificate import bound, lengths, norms
from statepool.engine.attention.wave.config import ORDERS, WaveConfig
from statepool.engine.attention.wave.segment import Segment, check
from statepool.kv.tiers import TierFailure
from statepool.native import kernels

F32 = npt.NDArray[np.float32]
Partial = tuple[F32, F32, F32]
"""Largest score, sum of exponentials, weighted values: ``[heads]``, ``[heads]``, ``[heads][head_dim]``."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One step's attention.

    Attributes:
        out: float32 ``[heads][head_dim]``.
        lse: float32 ``[heads]``, logarithm of the (estimated) sum of exp(score).
        zones: int32 ``[kv_heads][clusters]``: 2 read whole, 1 estimated, 0 left out; None unless asked for.
        error: float64 ``[heads]``, proved distance of ``out`` from exact attention; None unless asked for.
    """

    out: F32
    lse: F32
    zones: npt.NDArray[np.int32] | None = None
    error: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step read, over all KV heads: keys that counted exactly, bytes, and the bytes of exact attention."""

    tokens: int
    bytes: int
    dense_bytes: int


class SegmentView:
    """The segments of one context in the order of their positions, kept in step with a growing end.

    ``load(start, stop)`` gives the segment of a stretch, built or found.
    """

    def __init__(self, kv_heads: int, head_dim: int, bf16: bool, config: WaveConfig) -> None:
        assert kernels is not None
        self.config = config
        self.segments: list[Segment] = []
        self._kv_heads = kv_heads
        self._longest: list[tuple[float, float]] = []  # norms of the first segments
        self.native = kernels.WaveIndex(kv_heads, head_dim, bf16)

    @property
    def end(self) -> int:
        """Tokens in segments."""
        return self.segments[-1].stop if self.segments else 0

    def advance(self, end: int, load: Callable[[int, int], Segment]) -> None:
        """Hold exactly the segments of ``end`` indexed tokens, more or fewer than before."""
        borders = self.config.segments(end)
        same = 0
        for segment, border in zip(self.segments, borders, strict=False):
            if (segment.start, segment.stop) != border:
                break
            same += 1
        # Load first: a failure leaves the view as it was.
        added = [load(*border) for border in borders[same:]]
        self.native.cut(same)
        del self.segments[same:], self._longest[same:]
        for segment in added:
            self.native.push(
                segment.centroids,
                segment.variances,
                segment.means,
                segment.rows,
                segment.offsets,
                segment.log_size,
                segment.spread,
                segment.stored,
            )
            self.segments.append(segment)

    def budget(self) -> tuple[int, int]:
        """How many clusters of a head a step reads whole, and how many it estimates."""
        config, start = self.config, self.segments[0].start if self.segments else 0
        assert start == 0
        count = sum(config.clusters(segment.start, segment.stop) for segment in self.segments)
        return config.budget(count)

    def partial(
        self,
        query: F32,
        scale: float,
        tail: npt.NDArray[Any] | None = None,
        zones: npt.NDArray[np.int32] | None = None,
        scores: F32 | None = None,
        read: int | None = None,
    ) -> Partial:
        """Un-normalised attention ``(m, l, acc)`` of ``query`` [heads][head_dim] over segments and ``tail`` rows.

        Raises:
            TierFailure: clusters could not be read from their file.
        """
        heads, width = query.shape
        m, l = np.empty(heads, np.float32), np.empty(heads, np.float32)
        acc = np.empty((heads, width), np.float32)
        usual, estimated = self.budget()
        read = usual if read is None else read
        mass, order = self.config.rank == "mass", ORDERS[self.config.estimator]
        assert kernels is not None
        try:
            self.native.decode(query, read, estimated, scale, mass, order, m, l, acc, tail, zones, scores)
        except kernels.TierFailure as error:
            raise TierFailure(str(error)) from None
        return m, l, acc

    def within(
        self,
        query: F32,
        eps: float,
        scale: float,
        finish: Callable[[Partial], tuple[F32, F32]],
        longest: tuple[float, float],
        tail: npt.NDArray[Any] | None = None,
    ) -> tuple[Partial, tuple[F32, F32], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """Like ``partial``, reading until ``finish`` of it is proved to be within ``eps`` of exact attention.

        Begins with the usual share and doubles it; where attention is spread evenly that ends with reading everything.

        Args:
            query: ``[heads][head_dim]``.
            eps: largest Euclidean distance, for each head.
            scale: of the scores.
            finish: (out, lse) ``[heads][head_dim]``, ``[heads]`` of a partial result together with all other tokens.
            longest: no key and no value of those other tokens is longer.
            tail: as in ``partial``.

        Returns:
            the partial result, what ``finish`` made of it, zones ``[kv_heads][clusters]``, proved errors ``[heads]``.
        """
        clusters, read = self.native.clusters, max(self.budget()[0], 1)
        self._longest += [norms(segment) for segment in self.segments[len(self._longest) :]]
        key_norm, value_norm = (max(pair[i] for pair in (*self._longest, longest)) for i in (0, 1))
        while True:
            zones = np.zeros((self._kv_heads, clusters), np.int32)
            scores = np.zeros((len(query), clusters), np.float32)
            part = self.partial(query, scale, tail, zones, scores, min(read, clusters))
            out, lse = finish(part)
            parts = list(zip(self.segments, self.by_segment(zones), self.by_segment(scores), strict=True))
            error = bound(parts, query, scale, out, lse, key_norm, value_norm)
            if read >= clusters or error.max() <= eps:
                return part, (out, lse), zones, error
            read *= 2

    def by_segment(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Cut the last axis, which counts clusters, at the segments' borders."""
        at = np.cumsum([0, *(segment.clusters for segment in self.segments)])
        return [array[:, a:b] for a, b in pairwise(at.tolist())]


class WaveIndex:
    """Keys and values of one layer, clustered as they come; not for use from several threads at once."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: npt.DTypeLike, config: WaveConfig) -> None:
        self.config = config
        self._view = SegmentView(kv_heads, head_dim, np.dtype(dtype) == np.uint16, config)
        self._tail = np.empty((kv_heads, 2, 0, head_dim), dtype)

    @classmethod
    def build(cls, keys: npt.NDArray[Any], values: npt.NDArray[Any], config: WaveConfig | None = None) -> WaveIndex:
        """Index a whole prompt.

        Args:
            keys, values: uint16 (bf16 bits) or float32 ``[kv_heads][tokens][head_dim]``, keys rotated.
            config: settings, by default this room's.

        Raises:
            InvalidRequest: shapes do not fit, or a number is not finite (its token is named).
        """
        check(keys, values, 0)
        index = cls(keys.shape[0], keys.shape[2], keys.dtype, config or WaveConfig())
        index._settle(np.stack([keys, values], axis=1))
        return index

    def append(self, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        """Add tokens behind the last one. On an error nothing was added.

        Raises:
            InvalidRequest: as ``build``.
        """
        check(keys, values, len(self))
        heads, _, _, width = self._tail.shape
        if keys.shape[0] != heads or keys.shape[2] != width or keys.dtype != self._tail.dtype:
            raise InvalidRequest(
                f"keys must be [{heads}, tokens, {width}] {self._tail.dtype}, got {keys.shape} {keys.dtype}",
                param="keys",
            )
        self._settle(np.concatenate([self._tail, np.stack([keys, values], axis=1)], axis=2))

    def rollback(self, tokens: int) -> None:
        """Forget everything behind the first ``tokens`` tokens.

        Raises:
            InvalidRequest: there are not so many.
        """
        if not 0 <= tokens <= len(self):
            raise InvalidRequest(f"tokens must be between 0 and {len(self)}, got {tokens}", param="tokens")
        kept = self._stretch(min(self._view.end, self.config.indexed(tokens)), len(self), self._tail)
        self._settle(kept[:, :, : tokens - self.config.indexed(tokens)], self.config.indexed(tokens))

    def __len__(self) -> int:
        return self._view.end + int(self._tail.shape[2])

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What is clustered, in order."""
        return tuple(self._view.segments)

    def decode(self, query: F32, scale: float | None = None, trace: bool = False) -> Decoded:
        """Attention of one token's ``query`` float32 ``[heads][head_dim]`` over the whole context.

        ``scale`` multiplies the scores, by default ``head_dim ** -0.5``; ``trace`` asks for ``Decoded.zones``.

        Raises:
            InvalidRequest: the shape does not fit, the query is not finite, or the index is empty.
        """
        self._check_query(query)
        query, (heads, width) = np.ascontiguousarray(query, np.float32), (self._tail.shape[0], query.shape[1])
        zones = np.zeros((heads, self._view.native.clusters), np.int32) if trace else None
        m, l, acc = self._view.partial(query, width**-0.5 if scale is None else scale, self._tail, zones)
        return Decoded(acc / l[:, None], m + np.log(l), zones)

    def decode_within(self, query: F32, eps: float, scale: float | None = None) -> Decoded:
        """Like ``decode``, reading as many clusters as it takes to prove ``error <= eps`` for every head.

        Begins with the usual share and doubles it; where attention is spread evenly that ends with reading everything.

        Args:
            query: float32 ``[heads][head_dim]``.
            eps: largest Euclidean distance from exact attention, in the unit of the values.
            scale: as in ``decode``.

        Raises:
            InvalidRequest: as ``decode``, or ``eps`` is not positive.
        """
        if not eps > 0:
            raise InvalidRequest(f"eps must be positive, got {eps}", param="eps")
        self._check_query(query)
        query = np.ascontiguousarray(query, np.float32)
        scale = query.shape[1] ** -0.5 if scale is None else scale
        longest = lengths(self._tail)

        def finish(part: Partial) -> tuple[F32, F32]:
            m, l, acc = part
            return acc / l[:, None], m + np.log(l)

        _, (out, lse), zones, error = self._view.within(query, eps, scale, finish, longest, self._tail)
        return Decoded(out, lse, zones, error)

    def cost(self, zones: npt.NDArray[np.int32]) -> Cost:
        """What a step with these ``Decoded.zones`` reads."""
        heads, _, tail, width = self._tail.shape
        item = self._tail.dtype.itemsize * width
        read = heads * tail
        for segment, part in zip(self.segments, self._view.by_segment(zones), strict=True):
            read += heads * segment.pinned + int(np.diff(segment.offsets, axis=1)[part == 2].sum())
        tables = sum(s.centroids.nbytes + (s.variances.nbytes if s.variances is not None else 0) for s in self.segments)
        return Cost(read, 2 * read * item + tables + int((zones == 1).sum()) * item, 2 * heads * len(self) * item)

    def _check_query(self, query: F32) -> None:
        heads, _, _, width = self._tail.shape
        if query.ndim != 2 or query.shape[1] != width or query.shape[0] % heads or not query.shape[0]:
            raise InvalidRequest(f"query must be [a multiple of {heads}, {width}], got {query.shape}", param="query")
        if not np.isfinite(query).all():
            raise InvalidRequest("query holds NaN or infinity", param="query")
        if not len(self):
            raise InvalidRequest("the index is empty: append() keys and values first", param="keys")

    def _settle(self, tail: npt.NDArray[Any], start: int | None = None) -> None:
        """Make ``tail`` (rows from ``start`` on) the end of the context and cluster what is due."""
        start = self._view.end if start is None else start
        end = self.config.indexed(start + tail.shape[2])

        def load(first: int, stop: int) -> Segment:
            rows = self._stretch(first, stop, tail, start)
            return Segment.build(rows[:, 0], rows[:, 1], first, self.config)

        self._view.advance(end, load)
        self._tail = np.ascontiguousarray(tail[:, :, end - start :])

    def _stretch(self, first: int, stop: int, tail: npt.NDArray[Any], start: int | None = None) -> npt.NDArray[Any]:
        """Keys and values ``[heads][2][stop - first][head_dim]`` by position, from segments and from ``tail``."""
        start = self._view.end if start is None else start
        parts = []
        for segment in self._view.segments:
            low, high = max(first, segment.start), min(stop, segment.stop, start)
            if low < high:
                keys, values = segment.tokens()
                parts.append(np.stack([keys, values], axis=1)[:, :, low - segment.start : high - segment.start])
        if stop > start:
            parts.append(tail[:, :, max(first - start, 0) : stop - start])
        return np.concatenate(parts, axis=2)
