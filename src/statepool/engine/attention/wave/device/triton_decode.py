"""Tripartite decode in Triton over a table of pages: nothing is gathered before it is attended to.

A page holds eight keys and then their values, so a cluster is a few pages and a step's clusters are a list of page
numbers. A program takes one KV head with its query heads and one stretch of that list, or of the list of clusters that
are estimated: those are keys as well, whose scores are known and whose values are their means. A second kernel merges
the stretches in order.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PAGE = 8
"""Tokens of a page."""
TILE, STRETCH = 32, 256
"""Keys that a program meets at a time, and keys of its whole stretch."""


@triton.jit
def _fold(m, l, acc, s, v, DOT: tl.constexpr):
    """Online softmax: (m, l, acc) of the keys so far, with scores ``s`` [group, tile] and values ``v``."""
    top = tl.maximum(tl.maximum(m, tl.max(s, axis=1)), -1e30)
    correction, p = tl.exp(m - top), tl.exp(s - top[:, None])
    more = tl.dot(p.to(v.dtype).to(DOT), v.to(DOT), input_precision="ieee")
    return top, l * correction + tl.sum(p, axis=1), acc * correction[:, None] + more


@triton.jit(do_not_specialize=["width_of_table", "estimates", "stretches", "exact_stretches"])
def _decode_kernel(
    q, pages, table, filled, scores, means, chosen, m_out, l_out, acc_out,
    scale, width_of_table, clusters, estimates, stretches, exact_stretches,
    GROUP: tl.constexpr, GROUP_P: tl.constexpr, WIDTH: tl.constexpr, WIDTH_P: tl.constexpr,
    PAGE: tl.constexpr, TILE: tl.constexpr, STRETCH: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    stream, stretch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, j, d = tl.arange(0, GROUP_P), tl.arange(0, TILE), tl.arange(0, WIDTH_P)
    inside = d < WIDTH
    real = (g < GROUP)[:, None] & inside[None, :]
    m = tl.full([GROUP_P], float("-inf"), tl.float32)
    l = tl.zeros([GROUP_P], tl.float32)
    acc = tl.zeros([GROUP_P, WIDTH_P], tl.float32)
    if stretch < exact_stretches:
        query = tl.load(q + (stream * GROUP + g)[:, None] * WIDTH + d[None, :], mask=real, other=0.0)
        for first in range(stretch * STRETCH, (stretch + 1) * STRETCH, TILE):
            slot = (first + j) // PAGE
            listed = slot < width_of_table
            page = tl.load(table + stream * width_of_table + slot, mask=listed, other=0).to(tl.int64)
            count = tl.load(filled + stream * width_of_table + slot, mask=listed, other=0)
            seen = (first + j) % PAGE < count
            at = (page * 2 * PAGE + (first + j) % PAGE)[:, None] * WIDTH + d[None, :]
            shown = seen[:, None] & inside[None, :]
            k = tl.load(pages + at, mask=shown, other=0.0)
            v = tl.load(pages + at + PAGE * WIDTH, mask=shown, other=0.0)
            s = tl.dot(query.to(k.dtype).to(DOT), tl.trans(k).to(DOT), input_precision="ieee") * scale
            m, l, acc = _fold(m, l, acc, tl.where(seen[None, :], s, float("-inf")), v, DOT)
    else:
        begin = (stretch - exact_stretches) * STRETCH
        for first in range(begin, begin + STRETCH, TILE):
            there = first + j < estimates
            cluster = tl.load(chosen + stream * estimates + first + j, mask=there, other=0)
            at = (stream * clusters + cluster)[:, None] * WIDTH + d[None, :]
            v = tl.load(means + at, mask=there[:, None] & inside[None, :], other=0.0)
            known = scores + (stream * GROUP + g)[:, None] * clusters + cluster[None, :]
            s = tl.load(known, mask=(g < GROUP)[:, None] & there[None, :], other=float("-inf"))
            m, l, acc = _fold(m, l, acc, s, v, DOT)
    to = (stream * GROUP + g) * stretches + stretch
    tl.store(m_out + to, m, mask=g < GROUP)
    tl.store(l_out + to, l, mask=g < GROUP)
    tl.store(acc_out + to[:, None] * WIDTH + d[None, :], acc, mask=real)


@triton.jit(do_not_specialize=["stretches"])
def _merge_kernel(m_in, l_in, acc_in, out, lse, stretches, WIDTH: tl.constexpr, WIDTH_P: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH_P)
    m = float("-inf")
    l = 0.0
    acc = tl.zeros([WIDTH_P], tl.float32)
    for stretch in range(stretches):
        at = row * stretches + stretch
        part = tl.load(m_in + at)
        top = tl.maximum(m, part)
        before, now = tl.exp(m - top), tl.exp(part - top)
        acc = acc * before + tl.load(acc_in + at * WIDTH + d, mask=d < WIDTH, other=0.0) * now
        l = l * before + tl.load(l_in + at) * now
        m = top
    tl.store(out + row * WIDTH + d, acc / l, mask=d < WIDTH)
    tl.store(lse + row, m + tl.log(l))


def decode(
    query: Tensor,
    pages: Tensor,
    table: Tensor,
    filled: Tensor,
    scores: Tensor,
    means: Tensor,
    chosen: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention of one token per context over listed pages and estimated clusters.

    Args:
        query: float32 ``[streams][group][width]``; a stream is one KV head of one context.
        pages: bf16 or float32 ``[pages][2][8][width]``, keys and values.
        table: int32 ``[streams][slots]``, pages to read.
        filled: int32 ``[streams][slots]``, tokens in each; 0 where nothing is listed.
        scores: float32 ``[streams][group][clusters]``, estimated logits, sizes counted.
        means: as ``pages``, ``[streams][clusters][width]``.
        chosen: int64 ``[streams][estimated]``, clusters that count by their mean.
        scale: of the products.

    Returns:
        float32 ``[streams][group][width]``, and the logarithm of the sum of exponentials ``[streams][group]``.
    """
    streams, group, width = query.shape
    exact = triton.cdiv(table.shape[1] * PAGE, STRETCH)
    stretches = exact + triton.cdiv(chosen.shape[1], STRETCH)
    options: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
    m, l = torch.empty(streams, group, stretches, **options), torch.empty(streams, group, stretches, **options)
    acc = torch.empty(streams, group, stretches, width, **options)
    out, lse = torch.empty(streams, group, width, **options), torch.empty(streams, group, **options)
    padded = max(triton.next_power_of_2(width), 16)
    # The interpreter has no products of bf16; float32 holds those of tensor cores exactly.
    dot = tl.bfloat16 if query.is_cuda and pages.dtype == torch.bfloat16 else tl.float32
    _decode_kernel[(streams, stretches)](
        query, pages, table, filled, scores, means, chosen, m, l, acc,
        scale, table.shape[1], scores.shape[2], chosen.shape[1], stretches, exact,
        GROUP=group, GROUP_P=max(triton.next_power_of_2(group), 16), WIDTH=width, WIDTH_P=padded,
        PAGE=PAGE, TILE=TILE, STRETCH=STRETCH, DOT=dot,
    )  # fmt: skip
    _merge_kernel[(streams * group,)](m, l, acc, out, lse, stretches, WIDTH=width, WIDTH_P=padded)
    return out, lse
