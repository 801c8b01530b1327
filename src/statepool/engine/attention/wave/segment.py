"""One immutable segment: the clusters of a stretch of the context, for every KV head of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidRequest
from statepool.engine.attention.wave.config import WaveConfig
from statepool.engine.attention.wave.memory import take
from statepool.native import kernels

LANES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Clusters of tokens ``start`` to ``stop``. ``T`` is uint16 (bf16 bits) or float32, as the keys are.

    Attributes:
        pinned: first tokens, which are in no cluster.
        centroids: T ``[heads][clusters / 16][head_dim][16]``, tiles of sixteen clusters.
        variances: as ``centroids``, mean squared distance per dimension; None unless the estimator needs it.
        means: T ``[heads][clusters][head_dim]``, mean value of each cluster.
        rows: T ``[heads][2 * tokens][head_dim]``, the pinned tokens and then cluster by cluster: its keys, its values.
        order: int32 ``[heads][tokens]``, which token is the i-th of ``rows``, counted from ``start``.
        offsets: int32 ``[heads][clusters + 1]``, where each cluster begins in ``order``.
        log_size: float32 ``[heads][clusters]``, -inf for an empty cluster.
        spread: float32 ``[heads][clusters]``, mean squared distance of the keys per dimension.
        reach, value_reach: float32 ``[heads][clusters]``, largest distance of a key (a value) from the stored centroid
            (mean), never too small.
        stored: the clusters in a file, if they are there (``WaveBuffer``); ``rows`` then holds the pinned tokens alone
            and ``order`` nothing.
    """

    start: int
    stop: int
    pinned: int
    centroids: npt.NDArray[Any]
    variances: npt.NDArray[Any] | None
    means: npt.NDArray[Any]
    rows: npt.NDArray[Any]
    order: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    log_size: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]
    reach: npt.NDArray[np.float32]
    value_reach: npt.NDArray[np.float32]
    stored: Any = None

    @classmethod
    def build(
        cls,
        keys: npt.NDArray[Any],
        values: npt.NDArray[Any],
        start: int,
        config: WaveConfig,
        labels: npt.NDArray[np.uint16] | None = None,
    ) -> Segment:
        """Cluster the tokens that begin at position ``start``.

        Deterministic: equal keys, values and settings give equal bytes, on every machine and with any threads.

        Args:
            keys, values: T ``[heads][tokens][head_dim]``, rotated, finite.
            start: position of the first token.
            config: settings.
            labels: of the same segment built before, which are then not looked for again; the bytes are the same.

        Raises:
            InvalidRequest: a key or value is NaN or infinite, or the shapes do not fit.
        """
        check(keys, values, start)
        heads, tokens, width = keys.shape
        pinned = config.pinned(start, start + tokens)
        clusters = min(config.clusters(start, start + tokens), tokens - pinned)
        padded = -(-clusters // LANES) * LANES
        tiles, each = ((heads, padded // LANES, width, LANES), keys.dtype), ((heads, padded), np.float32)
        # What every step reads lies together.
        centroids, means, offsets, log_size, spread, *variances = _together(
            tiles,
            ((heads, padded, width), keys.dtype),
            ((heads, padded + 1), np.int32),
            each,
            each,
            *([tiles] if config.estimator == "diag2" else []),
        )
        (rows,) = _together(((heads, 2 * tokens, width), keys.dtype))
        segment = cls(
            start,
            start + tokens,
            pinned,
            centroids,
            variances[0] if variances else None,
            means,
            rows,
            np.empty((heads, tokens), np.int32),
            offsets,
            log_size,
            spread,
            *(np.empty(*each) for _ in range(2)),
        )
        assert kernels is not None
        kernels.wave_build(
            np.ascontiguousarray(keys),
            np.ascontiguousarray(values),
            pinned,
            clusters,
            config.iterations,
            segment.centroids,
            segment.variances,
            segment.means,
            segment.rows,
            segment.order,
            segment.offsets,
            segment.log_size,
            segment.spread,
            segment.reach,
            segment.value_reach,
            labels,
        )
        return segment

    def labels(self) -> npt.NDArray[np.uint16]:
        """The cluster of every token behind the pinned ones, ``[heads][tokens - pinned]``; clusters are in memory."""
        found = np.empty((len(self.order), self.order.shape[1] - self.pinned), np.uint16)
        for head, order in enumerate(self.order):
            found[head, order[self.pinned :] - self.pinned] = np.repeat(
                np.arange(self.clusters, dtype=np.uint16), np.diff(self.offsets[head])
            )
        return found

    @property
    def clusters(self) -> int:
        """Clusters per head, those that only fill a tile included."""
        return int(self.means.shape[1])

    @property
    def meta_bytes(self) -> int:
        """Bytes of everything but the rows."""
        arrays = (self.centroids, self.variances, self.means, self.order, self.offsets, self.log_size, self.spread)
        table = 0 if self.stored is None else int(self.stored.memory)
        return table + sum(a.nbytes for a in (*arrays, self.reach, self.value_reach) if a is not None)

    def tokens(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Keys and values T ``[heads][tokens][head_dim]`` in their original order."""
        heads, double, width = self.rows.shape
        keys, values = np.empty((2, heads, double // 2, width), self.rows.dtype)
        place = np.arange(double // 2)
        for head, order in enumerate(self.order):
            borders = np.concatenate([[0], self.offsets[head]])
            sizes = np.diff(borders)
            keys[head, order] = self.rows[head, place + np.repeat(borders[:-1], sizes)]
            values[head, order] = self.rows[head, place + np.repeat(borders[1:], sizes)]
        return keys, values


def _together(*tables: tuple[tuple[int, ...], npt.DTypeLike]) -> list[npt.NDArray[Any]]:
    """Arrays of these shapes and dtypes in one piece of memory, each at a cache line's multiple from its begin."""
    sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in tables]
    begins = list(accumulate((-(-size // 64) * 64 for size in sizes), initial=0))
    piece = take(begins[-1])
    return [
        piece[begin : begin + size].view(dtype).reshape(shape)
        for (shape, dtype), size, begin in zip(tables, sizes, begins, strict=False)
    ]


def check(keys: npt.NDArray[Any], values: npt.NDArray[Any], start: int) -> None:
    """Raise ``InvalidRequest`` unless both are finite arrays ``[heads][tokens][head_dim]`` of the same kind."""
    if keys.ndim != 3 or keys.shape != values.shape or keys.dtype != values.dtype:
        raise InvalidRequest(
            f"keys and values must both be [heads, tokens, head_dim]; got {keys.shape} {keys.dtype} "
            f"and {values.shape} {values.dtype}",
            param="keys",
        )
    if keys.dtype not in (np.uint16, np.float32):
        raise InvalidRequest(f"keys must be uint16 (bf16 bits) or float32, got {keys.dtype}", param="keys")
    if keys.shape[2] % LANES or 0 in keys.shape:
        raise InvalidRequest(f"head_dim must be a positive multiple of {LANES}, got {keys.shape[2]}", param="keys")
    for name, array in (("keys", keys), ("values", values)):
        # All exponent bits set: infinite or not a number.
        bits = array if array.dtype == np.uint16 else np.ascontiguousarray(array).view(np.uint32)
        sign, infinite = (0x7FFF, 0x7F80) if array.dtype == np.uint16 else (0x7FFFFFFF, 0x7F800000)
        if (bits & sign).max() >= infinite:
            bad = (bits & sign) >= infinite
            token = int(np.argmax(bad.any(axis=(0, 2))))
            raise InvalidRequest(f"{name}: token {start + token} holds NaN or infinity", param=name)
