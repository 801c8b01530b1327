"""Block attention with gradients on a CPU, by the native kernels: documents of one packed batch, block-major."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from statepool.engine.attention.moba.config import MobaConfig
from statepool.native import kernels

WIDTH = 16
"""Head dimensions that the kernels take are multiples of this."""


class NativeBlocks(torch.autograd.Function):
    """Attention of ``q [T][heads][d]`` to ``k, v [T][kv_heads][d]``, float32, between ``borders`` of documents.

    A query's bits depend on its document up to it, and not on threads or on what is packed beside it.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, borders: list[int], config: MobaConfig, together: bool
    ) -> Tensor:
        """Attention, block after block in order of position."""
        assert kernels is not None
        out, scale = _fresh(q), q.shape[2] ** -0.5
        kept = []
        for a, b in pairwise(borders):
            rows = [_array(x[a:b]) for x in (q, k, v, out)]
            chosen = np.empty((q.shape[1], min(config.topk, (b - a) // config.block + 1), b - a), np.int32)
            lse = np.empty((q.shape[1], b - a), np.float32)
            kernels.choose_blocks(rows[0], rows[1], config.block, together, chosen)
            kernels.block_attention(*rows[:3], config.block, chosen, scale, rows[3], lse)
            kept.append((a, b, chosen, lse))
        ctx.save_for_backward(q, k, v, out)
        ctx.block, ctx.kept = config.block, kept
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients from weights computed anew: nothing of their size is kept."""
        assert kernels is not None
        q, k, v, out = ctx.saved_tensors
        grad, scale = grads[0].contiguous(), q.shape[2] ** -0.5
        found = [_fresh(x) for x in (q, k, v)]
        for a, b, chosen, lse in ctx.kept:
            rows = [_array(x[a:b]) for x in (q, k, v)]
            results = [_array(x[a:b]) for x in (out, grad, *found)]
            kernels.block_attention_backward(*rows, ctx.block, chosen, scale, results[0], lse, *results[1:])
        return *found, None, None, None


def _fresh(x: Tensor) -> Tensor:
    """Memory of the shape of ``x``; NumPy asks for huge pages: small ones cost a tenth of a pass to touch."""
    return torch.from_numpy(np.empty(tuple(x.shape), np.float32))


def _array(x: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = x.detach().numpy()
    return array
