"""Block attention with gradients: block by block over gathered queries, never a dense matrix. Here in torch.

For each block, the queries that chose it are gathered and attend to it; the parts of a query are merged by their
log-sum-exp. Gradients flow through products and merge, not through the choice (MoBA 2.3, Algorithm 1); the backward
pass computes weights anew from the merged log-sum-exp, so nothing of the size of the weights is kept.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.attention.moba.config import MobaConfig
from statepool.native import kernels as native
from statepool.train.moba_native import WIDTH, NativeBlocks

Kernels = Literal["auto", "native", "torch", "triton"]


def moba_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None = None,
    block: int = 512,
    topk: int = 3,
    select: Literal["head", "group"] = "head",
    kernels: Kernels = "auto",
) -> Tensor:
    """Causal block attention of packed documents.

    Args:
        q: ``[T][heads][head_dim]``.
        k, v: ``[T][kv_heads][head_dim]``; ``heads`` is a multiple of ``kv_heads``.
        cu_seqlens: int ``[documents + 1]``, borders of the documents in T; by default one. Blocks restart at each.
        block: tokens per block.
        topk: blocks a query reads, its own counted.
        select: each query head chooses for itself, or those of a KV head choose together by the sum of their scores.
        kernels: ``auto`` takes Triton for tensors on a GPU, where it is installed, the native kernels on a CPU for
            head dimensions that are multiples of 16, and torch else and for float64.

    Returns:
        ``[T][heads][head_dim]`` in the type of ``q``; sums are float32 (float64 for float64).

    Raises:
        InvalidConfig: ``block`` or ``topk`` below 1, or kernels that cannot run here.
        InvalidRequest: shapes, borders or ``select`` that do not fit.
    """
    config = MobaConfig(block, topk)
    _check(q, k, v, select)
    borders = [0, len(q)] if cu_seqlens is None else [int(x) for x in cu_seqlens]
    if borders[0] != 0 or borders[-1] != len(q) or any(b < a for a, b in pairwise(borders)):
        raise InvalidRequest(f"cu_seqlens must rise from 0 to {len(q)}, got {borders}", param="cu_seqlens")
    kind = _kernels_for(q, kernels)
    if kind == "native":
        wide = [x.float().contiguous() for x in (q, k, v)]
        out: Tensor = NativeBlocks.apply(*wide, borders, config, select == "group")
        return out.to(q.dtype)
    document = _triton_document if kind == "triton" else _document
    parts = [document(q[a:b], k[a:b], v[a:b], config, select) for a, b in pairwise(borders) if a < b]
    return torch.cat(parts) if parts else torch.zeros_like(q)


_OWN, _PAST = 128, 1024
"""Most queries of a piece: of a block's own, so that few products are of keys ahead, and of later blocks'."""


class Piece(NamedTuple):
    """Queries of one head that read one block, of one document; of its own queries, only the keys they may see."""

    head: int
    start: int
    stop: int
    rows: Tensor
    places: Tensor
    """int64, ``slot * T + row``: which of its parts this is for each query."""
    causal: bool
    """Whether the queries are those of the last keys, in order, and none sees ahead."""


def chosen_blocks(q: Tensor, k: Tensor, config: MobaConfig, select: str) -> Tensor:
    """int64 ``[heads][slots][T]``: the blocks each query of one document reads, its own at slot 0, -1 for none."""
    count, heads, _ = q.shape
    full, group = count // config.block, heads // k.shape[1]
    own = torch.arange(count, device=q.device) // config.block
    slots = min(config.topk, full + 1)
    found = torch.full((heads, slots, count), -1, dtype=torch.int64, device=q.device)
    found[:, 0] = own
    means = k.detach()[: full * config.block].float().reshape(full, config.block, *k.shape[1:]).mean(1)
    past = torch.arange(full, device=q.device)[None] < own[:, None]
    for kv in range(k.shape[1]):
        mine = slice(kv * group, (kv + 1) * group)
        scores = q.detach()[:, mine].float().transpose(0, 1) @ means[:, kv].T
        if select == "group":
            scores = scores.sum(0, keepdim=True)
        # Not a number is no order: such a block comes last, as in the engine.
        scores = scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        left = past[None].expand_as(scores).clone()
        for slot in range(1, slots):
            # The first of equals, as the engine has it; what is not left must lose even to -inf.
            best = torch.where(left, scores, -torch.inf)
            block = torch.where(best.isneginf().all(-1), left.int().argmax(-1), best.argmax(-1))
            found[mine, slot] = torch.where(left.any(-1), block, -1)
            left.scatter_(-1, block[..., None], False)
    return found


def _document(q: Tensor, k: Tensor, v: Tensor, config: MobaConfig, select: str) -> Tensor:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    chosen = chosen_blocks(q, k, config, select)
    queries, keys, values = (x.transpose(0, 1).to(wide).contiguous() for x in (q, k, v))
    out: Tensor = _Blocks.apply(queries, keys, values, _pieces(chosen, config.block), chosen.shape[1])
    return out.transpose(0, 1).to(q.dtype)


def _kernels_for(q: Tensor, kernels: str) -> str:
    exact = q.dtype == torch.float64
    able = {
        "triton": not exact and find_spec("triton") is not None,
        "native": not exact and not q.is_cuda and native is not None and q.shape[2] % WIDTH == 0,
        "torch": True,
    }
    if kernels == "auto":
        return "triton" if q.is_cuda and able["triton"] else "native" if able["native"] else "torch"
    if kernels not in able:
        raise InvalidConfig(f"kernels must be auto, native, torch or triton, got {kernels!r}", param="kernels")
    if not able[kernels]:
        needs = "triton installed" if kernels == "triton" else f"a CPU and a head dimension that {WIDTH} divides"
        raise InvalidConfig(f"kernels={kernels} needs {needs}, and at most float32", param="kernels")
    return kernels


def _triton_document(q: Tensor, k: Tensor, v: Tensor, config: MobaConfig, select: str) -> Tensor:
    from statepool.train.moba_triton import Lists, TritonBlocks

    lists = Lists(chosen_blocks(q, k, config, select), config.block)
    out: Tensor = TritonBlocks.apply(*(x.transpose(0, 1).to(q.dtype).contiguous() for x in (q, k, v)), lists)
    return out.transpose(0, 1)


def _pieces(chosen: Tensor, block: int) -> list[Piece]:
    """All pieces, head by head and block by block."""
    _, _, count = chosen.shape
    pieces = []
    for head, slots in enumerate(chosen):
        # Stable, so that a block's own queries, which are in slot 0, come first and in order.
        order = torch.argsort(slots.flatten(), stable=True)
        sizes = torch.bincount(slots.flatten() + 1, minlength=-(-count // block) + 1).tolist()
        for number, places in enumerate(order.split(sizes)[1:]):
            start, stop = number * block, min((number + 1) * block, count)
            for part in places[: stop - start].split(_OWN):
                last = int(part[-1]) + 1
                pieces.append(Piece(head, start, last, part, part, True))
            later = places[stop - start :].split(_PAST)
            pieces += [Piece(head, start, stop, part % count, part, False) for part in later if len(part)]
    return pieces


class _Blocks(torch.autograd.Function):
    """Attention of ``q [heads, T, d]`` to ``k, v [kv_heads, T, d]`` over pieces."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: list[Piece], slots: int) -> Tensor:
        heads, count, width = q.shape
        group = heads // len(k)
        scaled = q * width**-0.5
        out, lse = torch.empty_like(q), q.new_empty(heads, count)
        parts = q.new_empty(slots * count, width)
        tops, sums = q.new_empty(slots * count), q.new_empty(slots * count)
        # One room for all pieces: fresh memory for each costs as much as its products.
        rows = max((len(piece.rows) for piece in pieces), default=0)
        keys = max((piece.stop - piece.start for piece in pieces), default=0)
        room = q.new_empty(rows * width), q.new_empty(rows * keys)
        by_head: list[list[Piece]] = [[] for _ in range(heads)]
        for piece in pieces:
            by_head[piece.head].append(piece)
        for head in range(heads):
            parts.zero_(), tops.fill_(-torch.inf), sums.zero_()
            for piece in by_head[head]:
                weights = _scores(scaled[head], k[head // group], piece, room)
                top = weights.amax(1)
                weights.sub_(top[:, None]).exp_()
                tops[piece.places], sums[piece.places] = top, weights.sum(1)
                values = v[head // group, piece.start : piece.stop]
                parts[piece.places] = torch.mm(weights, values, out=_shaped(room[0], len(weights), width))
            by_slot = tops.view(slots, count)
            share = (by_slot - by_slot.amax(0)).exp_()
            total = (share * sums.view(slots, count)).sum(0)
            out[head] = torch.einsum("st,std->td", share / total, parts.view(slots, count, width))
            lse[head] = by_slot.amax(0) + total.log()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.pieces = pieces
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        q, k, v, out, lse = ctx.saved_tensors
        group, scale = len(q) // len(k), q.shape[2] ** -0.5
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scaled, spread = q * scale, (grad * out).sum(2)
        for piece in ctx.pieces:
            head, kv, span = piece.head, piece.head // group, slice(piece.start, piece.stop)
            weights = _scores(scaled[head], k[kv], piece, None).sub_(lse[head, piece.rows, None]).exp_()
            above = grad[head, piece.rows]
            dv[kv, span] += weights.T @ above
            weights *= (above @ v[kv, span].T).sub_(spread[head, piece.rows, None])
            dq[head].index_add_(0, piece.rows, weights @ k[kv, span], alpha=scale)
            dk[kv, span] += weights.T @ scaled[head, piece.rows]
        return dq, dk, dv, None, None


def _shaped(memory: Tensor, *shape: int) -> Tensor:
    """The beginning of ``memory`` in another shape."""
    return memory[: math.prod(shape)].view(shape)


def _scores(q: Tensor, k: Tensor, piece: Piece, room: tuple[Tensor, Tensor] | None) -> Tensor:
    """``[rows][keys]``, -inf for keys ahead; ``room`` for queries and scores is used if given."""
    keys, count = k[piece.start : piece.stop], len(piece.rows)
    if room is None:
        scores = q[piece.rows] @ keys.T
    else:
        gathered = torch.index_select(q, 0, piece.rows, out=_shaped(room[0], count, q.shape[1]))
        scores = torch.mm(gathered, keys.T, out=_shaped(room[1], count, len(keys)))
    if piece.causal:
        own = len(piece.rows)
        ahead = torch.ones(own, own, dtype=torch.bool, device=q.device).triu_(1)
        scores[:, -own:].masked_fill_(ahead, -torch.inf)
    return scores


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
