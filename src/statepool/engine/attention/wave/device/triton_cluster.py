"""k-means in Triton: the nearest centroid of each key, and the sum of each cluster's keys in a fixed order.

No matrix of keys times centroids is made: a program holds a tile of keys, walks the centroids and keeps the best. Sums
go over the members of a cluster in order of position, so that equal keys give equal bits each time.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, LANES = 64, 32
"""Keys of one program, and centroids that it meets at a time."""


@triton.jit(do_not_specialize=["count", "clusters"])
def _assign_kernel(
    keys, centroids, best, count, clusters,
    WIDTH: tl.constexpr, WIDTH_P: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(1).to(tl.int64)
    i, lane, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, LANES), tl.arange(0, WIDTH_P)
    inside = d < WIDTH
    at = (stream * count + i)[:, None] * WIDTH + d[None, :]
    y = tl.load(keys + at, mask=(i < count)[:, None] & inside[None, :], other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    where = tl.zeros([ROWS], tl.int32)
    for first in range(0, clusters, LANES):
        c = first + lane
        tile = centroids + (stream * clusters + c)[:, None] * WIDTH + d[None, :]
        w = tl.load(tile, mask=(c < clusters)[:, None] & inside[None, :], other=0.0)
        s = tl.where((c < clusters)[None, :], tl.dot(y, tl.trans(w), input_precision="ieee"), float("-inf"))
        most = tl.max(s, axis=1)
        # The first of the largest: a later tile must be better, and within one the smallest number wins.
        found = tl.min(tl.where(s == most[:, None], c[None, :], clusters), axis=1)
        where = tl.where(most > top, found, where)
        top = tl.maximum(most, top)
    tl.store(best + stream * count + i, where, mask=i < count)


@triton.jit(do_not_specialize=["count", "clusters"])
def _sum_kernel(
    rows, order, offsets, sums, count, clusters,
    WIDTH: tl.constexpr, WIDTH_P: tl.constexpr,
):  # fmt: skip
    cluster, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, WIDTH_P)
    border = offsets + stream * (clusters + 1) + cluster
    total = tl.zeros([WIDTH_P], tl.float32)
    for i in range(tl.load(border), tl.load(border + 1)):
        member = tl.load(order + stream * count + i)
        total += tl.load(rows + (stream * count + member) * WIDTH + d, mask=d < WIDTH, other=0.0)
    tl.store(sums + (stream * clusters + cluster) * WIDTH + d, total, mask=d < WIDTH)


def assign(keys: Tensor, centroids: Tensor) -> Tensor:
    """int32 ``[streams][tokens]``: the first centroid with the largest product.

    Args:
        keys: float32 ``[streams][tokens][width]``, contiguous.
        centroids: float32 ``[streams][clusters][width]``, contiguous.
    """
    streams, count, width = keys.shape
    best = torch.empty(streams, count, dtype=torch.int32, device=keys.device)
    _assign_kernel[(triton.cdiv(count, ROWS), streams)](
        keys, centroids, best, count, centroids.shape[1],
        WIDTH=width, WIDTH_P=max(triton.next_power_of_2(width), 16), ROWS=ROWS, LANES=LANES,
    )  # fmt: skip
    return best


def members(best: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """(order int64 ``[streams][tokens]``, offsets int64 ``[streams][clusters + 1]``) of an assignment."""
    order = torch.argsort(best, dim=1, stable=True)
    sizes = torch.zeros(len(best), clusters + 1, dtype=torch.int64, device=best.device)
    sizes.scatter_add_(1, best.long() + 1, torch.ones_like(order))
    return order, sizes.cumsum(1)


def sums(rows: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    """float32 ``[streams][clusters][width]``: the sum of each cluster's ``rows`` ``[streams][tokens][width]``."""
    streams, count, width = rows.shape
    clusters = offsets.shape[1] - 1
    total = torch.empty(streams, clusters, width, dtype=torch.float32, device=rows.device)
    _sum_kernel[(clusters, streams)](
        rows, order, offsets, total, count, clusters, WIDTH=width, WIDTH_P=triton.next_power_of_2(width)
    )
    return total


def cluster(keys: Tensor, clusters: int, iterations: int) -> Tensor:
    """Cluster of each key, int32 ``[streams][tokens]``, by k-means with cosine inside (RetroInfer 4.2).

    Args:
        keys: float32 ``[streams][tokens][width]``, centred.
        clusters: how many; the first centroids are keys at equal distances.
        iterations: rounds.
    """
    count = keys.shape[1]
    at = (torch.arange(clusters, device=keys.device) * count + count // 2) // clusters
    centroids = keys[:, at].contiguous()
    best = assign(keys, centroids)
    for _ in range(iterations - 1):
        order, offsets = members(best, clusters)
        total = sums(keys, order, offsets)
        length = total.norm(dim=2, keepdim=True)
        # An empty cluster stays where it was.
        centroids = torch.where(length > 0, total / length.clamp_min(1e-30), centroids)
        best = assign(keys, centroids)
    return best
