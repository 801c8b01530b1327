"""How far an estimate can be from exact attention, proved from what the index stores (no such bound is published).

For a cluster of ``n`` keys within ``reach`` R of its centroid, with a = scale |q| R, the mass Z of the cluster lies in

    n exp(x) <= Z <= n exp(x) cosh(a),    x = scale q . centroid

by convexity, where the centroid is the keys' mean; both sides are widened by what storing the centroid rounded off.
The step used an estimate E (0 where it left the cluster out) and the mean value v, and answered o. With Z_read the mass
that was read exactly and R_v the reach of the values,

    |exact - o| <= sum(max(U - E, E - L) |v - o| + U R_v) / (Z_read + sum(L))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.engine.attention.wave.segment import Segment
from statepool.engine.loader import widen

F64 = npt.NDArray[np.float64]
_SLACK = 1e-4
"""Of the bound, for its own arithmetic and the step's sums."""
_ROUNDING = 2.0**-24
"""Of a float32 operation."""


def bound(
    segments: list[tuple[Segment, npt.NDArray[np.int32], npt.NDArray[np.float32]]],
    query: npt.NDArray[np.float32],
    scale: float,
    out: npt.NDArray[np.float32],
    lse: npt.NDArray[np.float32],
    key_norm: float,
    value_norm: float,
) -> F64:
    """Largest possible Euclidean distance of ``out`` from exact attention, float64 ``[heads]``.

    Args:
        segments: each with its zones ``[kv_heads][clusters]`` and the step's scores ``[heads][clusters]``.
        query: ``[heads][head_dim]``.
        scale: of the scores.
        out, lse: ``[heads][head_dim]`` and ``[heads]``, what the step answered.
        key_norm, value_norm: no key and no value of the context is longer.
    """
    heads = len(query)
    group = heads // len(segments[0][1]) if segments else 1
    wrong, least, estimated = np.zeros(heads), np.zeros(heads), np.zeros(heads)
    for segment, zones, scores in segments:
        centroids, means = _centroids(segment), _wide(segment.means)
        for head in range(heads):
            kv = head // group
            unread = (zones[kv] < 2) & np.isfinite(segment.log_size[kv])
            if not unread.any():
                continue
            q, at = query[head].astype(np.float64), np.flatnonzero(unread)
            log_n = segment.log_size[kv, at] - float(lse[head])
            # einsum and not BLAS, whose sums depend on the number of threads.
            x, length = scale * np.einsum("cd,d->c", centroids[kv, at], q), scale * float(np.sqrt(np.square(q).sum()))
            a = length * segment.reach[kv, at].astype(np.float64)
            off = length * _rounding(segment, centroids[kv, at], segment.reach[kv, at])
            low = np.exp(x + log_n - off)
            # The mean offset shifts the two-point distribution that attains the bound: + (off / a) sinh(a).
            high = np.exp(x + log_n) * (np.cosh(a) + off * np.where(a > 0, np.sinh(a) / np.maximum(a, 1e-300), 1.0))
            used = np.where(zones[kv, at] == 1, np.exp(scores[head, at].astype(np.float64) + log_n), 0.0)
            far = np.linalg.norm(means[kv, at] - out[head], axis=1)
            wrong[head] += (np.maximum(high - used, used - low) * far + high * segment.value_reach[kv, at]).sum()
            least[head] += low.sum()
            estimated[head] += used.sum()
    # Masses are in units of the step's own denominator, which is what it read plus what it estimated.
    read = np.maximum(1.0 - estimated, 0.0)
    # A score is a sum of head_dim products in float32; an error in it is a relative error of a weight, on both sides.
    length = scale * np.linalg.norm(query.astype(np.float64), axis=1)
    rounding = 2 * value_norm * _ROUNDING * ((query.shape[1] + 8) * length * key_norm + 64)
    found: F64 = wrong / np.maximum(read + least, 1e-300) * (1 + _SLACK) + rounding
    return found


def norms(segment: Segment) -> tuple[float, float]:
    """Lengths that no key and no value of a segment exceeds."""
    pinned = _wide(segment.rows[:, : 2 * segment.pinned])
    first = np.linalg.norm(pinned, axis=2).max(initial=0.0)
    keys = np.linalg.norm(_centroids(segment), axis=2) + segment.reach
    values = np.linalg.norm(_wide(segment.means), axis=2) + segment.value_reach
    return max(float(keys.max()), float(first)), max(float(values.max()), float(first))


def lengths(tail: npt.NDArray[Any]) -> tuple[float, float]:
    """Likewise of rows ``[kv_heads][2][tokens][head_dim]``."""
    longest = np.linalg.norm(_wide(tail), axis=3).max(axis=(0, 2), initial=0.0)
    return float(longest[0]), float(longest[1])


def _wide(array: npt.NDArray[Any]) -> F64:
    return widen(array).astype(np.float64)


def _centroids(segment: Segment) -> F64:
    """``[heads][clusters][head_dim]``."""
    tiles = _wide(segment.centroids)
    heads, count, width, lanes = tiles.shape
    return tiles.transpose(0, 1, 3, 2).reshape(heads, count * lanes, width)


def _rounding(segment: Segment, centroids: F64, reach: npt.NDArray[np.float32]) -> F64:
    """How far a stored centroid can be from the mean of its keys."""
    share = 2.0**-8 if segment.centroids.dtype == np.uint16 else 2.0**-18
    found: F64 = share * np.linalg.norm(centroids, axis=1) + 2.0**-18 * reach
    return found
