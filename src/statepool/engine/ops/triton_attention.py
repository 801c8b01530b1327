"""Attention over the paged pool in Triton: a fixed order of additions per row, whatever the batch or the chunk.

One program takes one row, one KV head with its group of query heads, and one segment of 1024 tokens; it visits the
segment's pages in order. A second kernel folds a row's segments in order. Nothing that the batch decides (rows,
requests, longest context) is a compile-time constant, so every row of a model runs the same machine code.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statepool.engine.ops.triton_numbers import kv_bits, load_kv

PAGE = tl.constexpr(16)
SEGMENT_PAGES = 64
"""Pages of one segment, as on the CPU."""
PARTIAL_BYTES = 1 << 28
"""Most memory of un-merged segments; longer batches run in slices of rows, with the same bits."""

DYNAMIC = ["first_row", "requests", "table_width", "layer", "segments"]


@triton.jit
def _request_of(query_start, requests, row):
    low: tl.int32 = 0
    high = requests
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(query_start + middle) <= row
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit(do_not_specialize=DYNAMIC)
def _segment_kernel(
    q, pool, tables, query_start, context_len, m_out, l_out, acc_out,
    scale, first_row, requests, table_width, layer, segments,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_STRIDE: tl.constexpr,
    GROUP: tl.constexpr, WIDTH_P: tl.constexpr, SPAN: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    local, kv_head, segment = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = first_row + local
    request = _request_of(query_start, requests, row)
    position = tl.load(context_len + request) - tl.load(query_start + request + 1) + row
    if segment * SPAN * PAGE <= position:
        per_head: tl.constexpr = HEADS // KV_HEADS
        g, d, j = tl.arange(0, GROUP), tl.arange(0, WIDTH_P), tl.arange(0, PAGE)
        head = kv_head * per_head + g
        real = (g < per_head)[:, None] & (d < WIDTH)[None, :]
        query = tl.load(q + (row.to(tl.int64) * HEADS + head[:, None]) * WIDTH + d[None, :], mask=real, other=0.0)
        m = tl.full([GROUP], float("-inf"), tl.float32)
        l = tl.zeros([GROUP], tl.float32)
        acc = tl.zeros([GROUP, WIDTH_P], tl.float32)
        page_size: tl.constexpr = PAGE * WIDTH
        first = segment * SPAN
        for page in range(first, tl.minimum(first + SPAN, position // PAGE + 1)):
            block = tl.load(tables + request.to(tl.int64) * table_width + page).to(tl.int64)
            keys = pool + block * BLOCK_STRIDE + (layer * 2 * KV_HEADS + kv_head) * page_size
            values = keys + KV_HEADS * page_size
            seen = page * PAGE + j <= position
            k = load_kv(keys + d[:, None] * PAGE + j[None, :], (d < WIDTH)[:, None] & seen[None, :], BF16)
            v = load_kv(values + j[:, None] * WIDTH + d[None, :], seen[:, None] & (d < WIDTH)[None, :], BF16)
            s = tl.sum(query[:, :, None] * k[None, :, :], axis=1) * scale
            s = tl.where(seen[None, :], s, float("-inf"))
            top = tl.maximum(m, tl.max(s, axis=1))
            correction, p = tl.exp(m - top), tl.exp(s - top[:, None])
            l = l * correction + tl.sum(p, axis=1)
            acc = acc * correction[:, None] + tl.sum(p[:, :, None] * v[None, :, :], axis=1)
            m = top
        at = (local.to(tl.int64) * HEADS + head) * segments + segment
        tl.store(m_out + at, m, mask=g < per_head)
        tl.store(l_out + at, l, mask=g < per_head)
        tl.store(acc_out + at[:, None] * WIDTH + d[None, :], acc, mask=real)


@triton.jit(do_not_specialize=DYNAMIC)
def _merge_kernel(
    m_in, l_in, acc_in, query_start, context_len, out, lse, first_row, requests, segments,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_P: tl.constexpr, SPAN: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    local, head = tl.program_id(0), tl.program_id(1)
    row = first_row + local
    request = _request_of(query_start, requests, row)
    position = tl.load(context_len + request) - tl.load(query_start + request + 1) + row
    d = tl.arange(0, WIDTH_P)
    m = float("-inf")
    l = 0.0
    acc = tl.zeros([WIDTH_P], tl.float32)
    for segment in range(position // (PAGE * SPAN) + 1):
        at = (local.to(tl.int64) * HEADS + head) * segments + segment
        part_m = tl.load(m_in + at)
        top = tl.maximum(m, part_m)
        e1, e2 = tl.exp(m - top), tl.exp(part_m - top)
        acc = acc * e1 + tl.load(acc_in + at * WIDTH + d, mask=d < WIDTH, other=0.0) * e2
        l = l * e1 + tl.load(l_in + at) * e2
        m = top
    to = row.to(tl.int64) * HEADS + head
    tl.store(out + to * WIDTH + d, acc / l, mask=d < WIDTH)
    if LSE:
        tl.store(lse + to, m + tl.log(l))


def attention(
    q: Tensor,
    pool: Tensor,
    layer: int,
    block_tables: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor | None = None,
) -> None:
    """As ``reference.attention``, on contiguous tensors of one device; the pool is bfloat16 or float32."""
    rows, heads, width = q.shape
    kv_heads, pages = pool.shape[3], kv_bits(pool)
    # From the table's shape, not from the contexts: their values are on the device, and reading them would wait for it.
    segments = max(1, -(-block_tables.shape[1] // SEGMENT_PAGES))
    step = max(1, PARTIAL_BYTES // (heads * segments * (width + 2) * 4))
    m = torch.empty(min(rows, step), heads, segments, dtype=torch.float32, device=q.device)
    l, acc = torch.empty_like(m), torch.empty(*m.shape, width, dtype=torch.float32, device=q.device)
    requests, padded = context_len.shape[0], triton.next_power_of_2(width)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        _segment_kernel[(count, kv_heads, segments)](
            q, pages, block_tables, query_start, context_len, m, l, acc,
            scale, first, requests, block_tables.shape[1], layer, segments,
            HEADS=heads, KV_HEADS=kv_heads, WIDTH=width, BLOCK_STRIDE=pool.stride(0),
            GROUP=triton.next_power_of_2(heads // kv_heads), WIDTH_P=padded, SPAN=SEGMENT_PAGES,
            BF16=pages.dtype == torch.int16,
        )  # fmt: skip
        _merge_kernel[(count, heads)](
            m, l, acc, query_start, context_len, out, lse, first, requests, segments,
            HEADS=heads, WIDTH=width, WIDTH_P=padded, SPAN=SEGMENT_PAGES, LSE=lse is not None,
        )  # fmt: skip
