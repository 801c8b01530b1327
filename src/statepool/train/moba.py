"""Block attention with gradients, in torch: block by block over gathered queries, never a dense matrix.

For each block, the queries that chose it are gathered and attend to it; the parts of a query are merged by their
log-sum-exp. Gradients flow through products and merge, not through the choice (MoBA 2.3, Algorithm 1).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from statepool.core.errors import InvalidRequest
from statepool.engine.attention.moba.config import MobaConfig


def moba_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None = None,
    block: int = 512,
    topk: int = 3,
    select: Literal["head", "group"] = "head",
) -> Tensor:
    """Causal block attention of packed documents.

    Args:
        q: ``[T][heads][head_dim]``.
        k, v: ``[T][kv_heads][head_dim]``; ``heads`` is a multiple of ``kv_heads``.
        cu_seqlens: int ``[documents + 1]``, borders of the documents in T; by default one. Blocks restart at each.
        block: tokens per block.
        topk: blocks a query reads, its own counted.
        select: each query head chooses for itself, or those of a KV head choose together by the sum of their scores.

    Returns:
        ``[T][heads][head_dim]`` in the type of ``q``; sums are float32 (float64 for float64).

    Raises:
        InvalidConfig: ``block`` or ``topk`` below 1. InvalidRequest: shapes, borders or ``select`` that do not fit.
    """
    config = MobaConfig(block, topk)
    _check(q, k, v, select)
    borders = [0, len(q)] if cu_seqlens is None else [int(x) for x in cu_seqlens]
    if borders[0] != 0 or borders[-1] != len(q) or any(b < a for a, b in pairwise(borders)):
        raise InvalidRequest(f"cu_seqlens must rise from 0 to {len(q)}, got {borders}", param="cu_seqlens")
    parts = [_document(q[a:b], k[a:b], v[a:b], config, select) for a, b in pairwise(borders) if a < b]
    return torch.cat(parts) if parts else torch.zeros_like(q)


def chosen_blocks(q: Tensor, k: Tensor, config: MobaConfig, select: str) -> Tensor:
    """bool ``[T][heads][blocks]``: which past blocks each query of one document reads besides its own."""
    count, heads, _ = q.shape
    full = count // config.block
    own = torch.arange(count, device=q.device) // config.block
    means = k[: full * config.block].float().reshape(full, config.block, *k.shape[1:]).mean(1)
    scores = torch.einsum(
        "tgjd,bgd->tgjb", q.detach().float().reshape(count, k.shape[1], -1, k.shape[2]), means.detach()
    )
    if select == "group":
        scores = scores.sum(2, keepdim=True).expand_as(scores)
    scores = scores.flatten(1, 2)
    past = torch.arange(full, device=q.device)[None] < own[:, None]
    scores = scores.masked_fill(~past[:, None], -torch.inf)
    wanted = min(config.topk - 1, full)
    found = torch.zeros(count, heads, full, dtype=torch.bool, device=q.device)
    # A stable sort gives ties to the first block, as the engine does.
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :wanted]
    found.scatter_(2, best, torch.ones_like(best, dtype=torch.bool))
    return found & past[:, None]


def _document(q: Tensor, k: Tensor, v: Tensor, config: MobaConfig, select: str) -> Tensor:
    count, heads, width = q.shape
    group = heads // k.shape[1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    queries, keys, values = (x.transpose(0, 1).to(wide) for x in (q, k, v))
    chosen = chosen_blocks(q, k, config, select)
    top = torch.full((heads, count), -torch.inf, dtype=wide, device=q.device)
    pieces: list[tuple[int, Tensor, Tensor, Tensor]] = []
    for start in range(0, count, config.block):
        stop = min(start + config.block, count)
        for head in range(heads):
            rows = torch.arange(start, stop, device=q.device)
            if stop - start == config.block:
                rows = torch.cat([rows, torch.nonzero(chosen[:, head, start // config.block])[:, 0]])
            scores = queries[head, rows] @ keys[head // group, start:stop].T * width**-0.5
            ahead = torch.arange(start, stop, device=q.device)[None] > rows[:, None]
            scores = scores.masked_fill(ahead, -torch.inf)
            pieces.append((head, rows, scores, values[head // group, start:stop]))
            largest = scores.detach().amax(1)
            top[head] = top[head].scatter_reduce(0, rows, largest, "amax")
    out = torch.zeros(heads * count, width, dtype=wide, device=q.device)
    total = torch.zeros(heads * count, dtype=wide, device=q.device)
    for head, rows, scores, value in pieces:
        weights = (scores - top[head, rows, None]).exp()
        out.index_add_(0, head * count + rows, weights @ value)
        total.index_add_(0, head * count + rows, weights.sum(1))
    merged: Tensor = (out / total[:, None]).reshape(heads, count, width)
    return merged.transpose(0, 1).to(q.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, select: str) -> None:
    if select not in ("head", "group"):
        raise InvalidRequest(f"select must be head or group, got {select!r}", param="select")
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or len(q) != len(k) or q.shape[2] != k.shape[2]:
        raise InvalidRequest(
            "q must be [T, heads, d], k and v [T, kv_heads, d]; "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}",
            param="q",
        )
    if q.shape[1] % k.shape[1]:
        raise InvalidRequest(f"{q.shape[1]} heads cannot share {k.shape[1]} KV heads", param="k")
