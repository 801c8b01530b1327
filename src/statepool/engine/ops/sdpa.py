"""Attention by torch's own fused kernel over gathered pages: the baseline that other kernels are measured against.

Its order of additions is the library's affair and changes with the number of rows, so it breaks the promise that a
request's bits do not depend on its batch. It is never chosen by default.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from statepool.engine.ops.reference import PAGE


def attention(
    q: Tensor,
    pool: Tensor,
    layer: int,
    block_tables: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """As ``reference.attention``, request by request, but for ``lse``, which torch does not give."""
    width, starts = q.shape[2], query_start.tolist()
    for r, context in enumerate(context_len.tolist()):
        begin, end = starts[r], starts[r + 1]
        if begin == end:
            continue
        kv = pool[block_tables[r, : -(-context // PAGE)].long(), layer]
        keys = kv[:, 0].unflatten(-1, (width, PAGE)).permute(1, 0, 3, 2).flatten(1, 2)[:, :context]
        values = kv[:, 1].unflatten(-1, (PAGE, width)).permute(1, 0, 2, 3).flatten(1, 2)[:, :context]
        rows = q[begin:end].transpose(0, 1).to(pool.dtype)
        position = torch.arange(context - (end - begin), context, device=q.device)
        seen = torch.arange(context, device=q.device)[None] <= position[:, None]
        mixed = scaled_dot_product_attention(
            rows[None], keys[None], values[None], attn_mask=seen, scale=scale, enable_gqa=True
        )
        out[begin:end] = mixed[0].transpose(0, 1).flatten(1).to(out.dtype)
