"""Block attention in Triton: the pieces of ``statepool.train.moba``, tile by tile over gathered queries.

Forward, one program takes a tile of the queries that read one block; what it gets is a part of each query's answer, at
a place of its own, and the parts are merged by their log-sum-exp. Backward, one program takes a tile of a block's keys
and visits all queries that read them, and another a tile of queries. No program adds to what another writes, so
gradients have the same bits each time, and nothing of the size of queries times blocks is kept.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, KEYS = 64, 64
"""Queries and keys of one tile."""


class Lists:
    """Which queries read which block, for the heads of one document, as the kernels take it.

    Args:
        chosen: int64 ``[heads][slots][T]``, as ``statepool.train.moba.chosen_blocks`` gives it.
        block: tokens per block.
    """

    def __init__(self, chosen: Tensor, block: int) -> None:
        heads, self.slots, self.count = chosen.shape
        self.block, self.blocks = block, -(-self.count // block)
        flat = chosen.reshape(heads, -1)
        # Stable: a block's queries are in one order, whatever the device. Places that read nothing come first.
        self.places = torch.argsort(flat, dim=1, stable=True).to(torch.int32)
        sizes = torch.zeros(heads, self.blocks + 1, dtype=torch.int64, device=flat.device)
        sizes.scatter_add_(1, flat + 1, torch.ones_like(flat))
        self.starts = sizes.cumsum(1).to(torch.int32)
        """``[heads][blocks + 1]``: where the queries of each block begin in ``places``, and where the last ends."""
        tiles = (sizes[:, 1:] + ROWS - 1) // ROWS
        self.tile_ends = tiles.cumsum(1).to(torch.int32)
        self.most_tiles = self.slots * self.count // ROWS + self.blocks


@triton.jit
def _tile(tile_ends, starts, head, tile, blocks, ROWS: tl.constexpr):
    """(block, first, stop): the block of a tile, its place in the list, and where the block's list ends."""
    low: tl.int32 = 0
    high = blocks
    while low < high:
        middle = (low + high) // 2
        before = tl.load(tile_ends + head * blocks + middle) <= tile
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    block = tl.minimum(low, blocks - 1)
    passed = tl.load(tile_ends + head * blocks + block - 1, mask=block > 0, other=0)
    first = tl.load(starts + head * (blocks + 1) + block) + (tile - passed) * ROWS
    return block, first, tl.load(starts + head * (blocks + 1) + block + 1)


@triton.jit
def _queries(places, head, first, stop, count, SLOTS: tl.constexpr, ROWS: tl.constexpr):
    """(place, row, listed): slot and row of the next queries of a list, the row alone, and whether there is one."""
    i = first + tl.arange(0, ROWS)
    place = tl.load(places + head * SLOTS * count + i, mask=i < stop, other=0).to(tl.int64)
    return place, place % count, i < stop


@triton.jit(do_not_specialize=["count", "blocks"])
def _forward(
    q, k, v, places, starts, tile_ends, parts, tops, sums, scale, count, blocks,
    SLOTS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_P: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tile < tl.load(tile_ends + head * blocks + blocks - 1):
        block, first, stop = _tile(tile_ends, starts, head, tile, blocks, ROWS)
        place, row, listed = _queries(places, head, first, stop, count, SLOTS, ROWS)
        j, d = tl.arange(0, KEYS), tl.arange(0, WIDTH_P)
        real = listed[:, None] & (d < WIDTH)[None, :]
        query = tl.load(q + (head * count + row)[:, None] * WIDTH + d[None, :], mask=real, other=0.0)
        m = tl.full([ROWS], float("-inf"), tl.float32)
        l = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, WIDTH_P], tl.float32)
        base = head // GROUP * count
        for at in range(block * BLOCK, tl.minimum((block + 1) * BLOCK, count), KEYS):
            key = at + j
            there = key < tl.minimum((block + 1) * BLOCK, count)
            shown = there[:, None] & (d < WIDTH)[None, :]
            keys = tl.load(k + (base + key)[:, None] * WIDTH + d[None, :], mask=shown, other=0.0)
            values = tl.load(v + (base + key)[:, None] * WIDTH + d[None, :], mask=shown, other=0.0)
            s = _dot(query, tl.trans(keys), DOT) * scale
            s = tl.where(there[None, :] & (key[None, :] <= row[:, None]), s, float("-inf"))
            # A tile of keys that are all ahead of a query leaves it as it was; its own block's first tile never is.
            top = tl.maximum(tl.maximum(m, tl.max(s, axis=1)), -1e30)
            correction, p = tl.exp(m - top), tl.exp(s - top[:, None])
            l = l * correction + tl.sum(p, axis=1)
            acc = acc * correction[:, None] + _dot(p.to(values.dtype), values, DOT)
            m = top
        to = head * SLOTS * count + place
        tl.store(tops + to, m, mask=listed)
        tl.store(sums + to, l, mask=listed)
        tl.store(parts + to[:, None] * WIDTH + d[None, :], acc, mask=real)


@triton.jit
def _dot(a, b, DOT: tl.constexpr):
    """float32 product of matrices of the tensors' type, multiplied in the type DOT."""
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee")


@triton.jit
def _weights(query, keys, lse, seen, scale, DOT: tl.constexpr):
    """Weights of a tile, computed anew from the merged log-sum-exp."""
    s = _dot(query, tl.trans(keys), DOT) * scale
    return tl.where(seen, tl.exp(s - lse[:, None]), 0.0)


@triton.jit(do_not_specialize=["count", "blocks"])
def _backward_queries(
    q, k, v, grad, lse, spread, places, starts, tile_ends, parts, scale, count, blocks,
    SLOTS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_P: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tile < tl.load(tile_ends + head * blocks + blocks - 1):
        block, first, stop = _tile(tile_ends, starts, head, tile, blocks, ROWS)
        place, row, listed = _queries(places, head, first, stop, count, SLOTS, ROWS)
        j, d = tl.arange(0, KEYS), tl.arange(0, WIDTH_P)
        real = listed[:, None] & (d < WIDTH)[None, :]
        at_row = (head * count + row)[:, None] * WIDTH + d[None, :]
        query = tl.load(q + at_row, mask=real, other=0.0)
        above = tl.load(grad + at_row, mask=real, other=0.0)
        whole = tl.load(lse + head * count + row, mask=listed, other=0.0)
        own = tl.load(spread + head * count + row, mask=listed, other=0.0)
        acc = tl.zeros([ROWS, WIDTH_P], tl.float32)
        base = head // GROUP * count
        for at in range(block * BLOCK, tl.minimum((block + 1) * BLOCK, count), KEYS):
            key = at + j
            there = key < tl.minimum((block + 1) * BLOCK, count)
            shown = there[:, None] & (d < WIDTH)[None, :]
            keys = tl.load(k + (base + key)[:, None] * WIDTH + d[None, :], mask=shown, other=0.0)
            values = tl.load(v + (base + key)[:, None] * WIDTH + d[None, :], mask=shown, other=0.0)
            seen = there[None, :] & (key[None, :] <= row[:, None])
            p = _weights(query, keys, whole, seen, scale, DOT)
            ds = p * (_dot(above, tl.trans(values), DOT) - own[:, None])
            acc += _dot(ds.to(keys.dtype), keys, DOT)
        tl.store(parts + (head * SLOTS * count + place)[:, None] * WIDTH + d[None, :], acc * scale, mask=real)


@triton.jit(do_not_specialize=["count", "blocks"])
def _backward_keys(
    q, k, v, grad, lse, spread, places, starts, dk, dv, scale, count, blocks,
    SLOTS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_P: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    part, kv_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    per_block: tl.constexpr = (BLOCK + KEYS - 1) // KEYS
    block = part // per_block
    j, d = tl.arange(0, KEYS), tl.arange(0, WIDTH_P)
    key = block * BLOCK + part % per_block * KEYS + j
    there = key < tl.minimum((block + 1) * BLOCK, count)
    shown = there[:, None] & (d < WIDTH)[None, :]
    at_key = (kv_head * count + key)[:, None] * WIDTH + d[None, :]
    keys, values = tl.load(k + at_key, mask=shown, other=0.0), tl.load(v + at_key, mask=shown, other=0.0)
    dkeys = tl.zeros([KEYS, WIDTH_P], tl.float32)
    dvalues = tl.zeros([KEYS, WIDTH_P], tl.float32)
    for mate in range(GROUP):
        head = kv_head * GROUP + mate
        stop = tl.load(starts + head * (blocks + 1) + block + 1)
        for first in range(tl.load(starts + head * (blocks + 1) + block), stop, ROWS):
            _place, row, listed = _queries(places, head, first, stop, count, SLOTS, ROWS)
            real = listed[:, None] & (d < WIDTH)[None, :]
            at_row = (head * count + row)[:, None] * WIDTH + d[None, :]
            query = tl.load(q + at_row, mask=real, other=0.0)
            above = tl.load(grad + at_row, mask=real, other=0.0)
            whole = tl.load(lse + head * count + row, mask=listed, other=0.0)
            own = tl.load(spread + head * count + row, mask=listed, other=0.0)
            seen = listed[:, None] & there[None, :] & (key[None, :] <= row[:, None])
            p = _weights(query, keys, whole, seen, scale, DOT)
            dvalues += _dot(tl.trans(p.to(above.dtype)), above, DOT)
            ds = p * (_dot(above, tl.trans(values), DOT) - own[:, None])
            dkeys += _dot(tl.trans(ds.to(query.dtype)), query, DOT)
    tl.store(dk + at_key, dkeys * scale, mask=shown)
    tl.store(dv + at_key, dvalues, mask=shown)


class TritonBlocks(torch.autograd.Function):
    """Attention of ``q [heads, T, d]`` to ``k, v [kv_heads, T, d]``, contiguous and of one type, over lists."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lists: Lists) -> Tensor:
        """Attend, and keep what the gradients need."""
        heads, count, width = q.shape
        parts = torch.zeros(heads, lists.slots, count, width, dtype=torch.float32, device=q.device)
        tops = torch.full(parts.shape[:3], -torch.inf, dtype=torch.float32, device=q.device)
        sums = torch.zeros_like(tops)
        _forward[(lists.most_tiles, heads)](
            q, k, v, lists.places, lists.starts, lists.tile_ends, parts, tops, sums, width**-0.5, count, lists.blocks,
            **_constants(q, k, lists),
        )  # fmt: skip
        top = tops.amax(1)
        share = (tops - top[:, None]).exp_()
        total = (share * sums).sum(1)
        out = torch.einsum("hst,hstd->htd", share / total[:, None], parts).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, top + total.log())
        ctx.lists = lists
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v, out, lse = ctx.saved_tensors
        lists, (heads, count, width) = ctx.lists, q.shape
        grad = grads[0].to(q.dtype).contiguous()
        spread = (grad.float() * out.float()).sum(2)
        parts = torch.zeros(heads, lists.slots, count, width, dtype=torch.float32, device=q.device)
        dk, dv = torch.empty_like(k, dtype=torch.float32), torch.empty_like(v, dtype=torch.float32)
        constants, scale = _constants(q, k, lists), width**-0.5
        _backward_queries[(lists.most_tiles, heads)](
            q,
            k,
            v,
            grad,
            lse,
            spread,
            lists.places,
            lists.starts,
            lists.tile_ends,
            parts,
            scale,
            count,
            lists.blocks,
            **constants,
        )
        _backward_keys[(lists.blocks * -(-lists.block // KEYS), len(k))](
            q,
            k,
            v,
            grad,
            lse,
            spread,
            lists.places,
            lists.starts,
            dk,
            dv,
            scale,
            count,
            lists.blocks,
            **constants,
        )
        return parts.sum(1).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def _constants(q: Tensor, k: Tensor, lists: Lists) -> dict[str, Any]:
    return {
        "SLOTS": lists.slots,
        "GROUP": len(q) // len(k),
        "BLOCK": lists.block,
        "WIDTH": q.shape[2],
        "WIDTH_P": max(triton.next_power_of_2(q.shape[2]), 16),
        "ROWS": ROWS,
        "KEYS": KEYS,
        # The interpreter has no products of bf16; float32 holds those of tensor cores exactly.
        "DOT": tl.bfloat16 if q.is_cuda and q.dtype == torch.bfloat16 else tl.float32,
    }
