"""Norms, rotation, gated products, softmax, there and back: one pass each in native code, else by torch's operations.

Rows are ``[tokens, heads * len(weight)]`` and may be parts of wider ones. Gradients are written in place: a part of the
tokens then stays in the cache of a core.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from statepool.native import kernels

Turn = tuple[Tensor, Tensor]
"""cos and sin ``[tokens, len(weight) / 2]`` of the angles by which each head of a token is turned behind its norm."""


def norm(x: Tensor, weight: Tensor, eps: float, turn: Turn | None = None, out: Tensor | None = None) -> Tensor:
    """RMSNorm of every head, then turned."""
    out = x.new_empty(x.shape) if out is None else out
    if _native(x):
        assert kernels is not None
        kernels.norm_rows(x.numpy(), weight.numpy(), eps, out.numpy(), *_tables(turn))
        return out
    heads = x.unflatten(1, (-1, len(weight)))
    value = heads * _scale(heads, eps) * weight
    return out.copy_((value if turn is None else _turned(value, *turn)).flatten(1))


def norm_back(x: Tensor, weight: Tensor, eps: float, up: Tensor, own: Tensor, turn: Turn | None = None) -> Tensor:
    """``up``, the gradient at ``norm(x, …)``, becomes that at ``x``; ``own`` gains that of the weight."""
    if _native(x):
        assert kernels is not None
        kernels.norm_rows_back(x.numpy(), weight.numpy(), eps, up.numpy(), own.numpy(), *_tables(turn))
        return up
    heads, above = (one.unflatten(1, (-1, len(weight))) for one in (x, up))
    if turn is not None:
        above = _turned(above, turn[0], -turn[1])
    scale = _scale(heads, eps)
    unit = heads * scale
    own += (above * unit).flatten(0, 1).sum(0)
    below = above * weight
    return up.copy_(((below - unit * (below * unit).mean(-1, keepdim=True)) * scale).flatten(1))


def gated_back(both: Tensor, above: Tensor) -> None:
    """Of ``silu(gate) * other``, where ``both`` is gate beside other and ``above`` the gradient at the product.

    ``both`` becomes the gradients of gate and other, ``above`` the product.
    """
    if _native(above):
        assert kernels is not None
        kernels.silu_mul_back(both.numpy(), above.numpy())
        return
    gate, other = both.chunk(2, 1)
    passed = functional.silu(gate)
    product = passed * other
    below = torch.ops.aten.silu_backward(above * other, gate)
    torch.mul(above, passed, out=other)
    gate.copy_(below)
    above.copy_(product)


def softmax_back(scores: Tensor, up: Tensor, along: Tensor, hidden: Tensor | None, width: int) -> None:
    """Of causal attention: ``scores`` become weights; ``up``, the gradient at the weights, that at the scores.

    Args:
        scores: ``[n, width * group, keys]``; queries of one token stand together, the last ``width`` keys are theirs.
        up: the same shape.
        along: ``[n, width * group]``, the weighted mean of ``up`` over the keys.
        hidden: bool ``[n, keys - width]``, keys that are padding.
        width: tokens that ask.
    """
    if _native(scores):
        assert kernels is not None
        padding = None if hidden is None else hidden.numpy()
        kernels.softmax_back(scores.numpy(), up.numpy(), along.numpy(), padding, width)
        return
    above = scores.shape[2] - width
    later = torch.ones(width, width, dtype=torch.bool).triu(1).repeat_interleave(scores.shape[1] // width, 0)
    scores[:, :, above:].masked_fill_(later, -torch.inf)
    if hidden is not None:
        scores[:, :, :above].masked_fill_(hidden[:, None], -torch.inf)
    scores.copy_(scores.softmax(-1))
    up.sub_(along[:, :, None]).mul_(scores)


def _native(x: Tensor) -> bool:
    return kernels is not None and x.dtype == torch.float32


def _tables(turn: Turn | None) -> tuple[object, ...]:
    return () if turn is None else (turn[0].numpy(), turn[1].numpy())


def _scale(heads: Tensor, eps: float) -> Tensor:
    return heads.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = heads.shape[-1] // 2
    a, b = heads[..., :half], heads[..., half:]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
