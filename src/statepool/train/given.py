"""Values that another arithmetic computed, with the gradients of the operation they stand for, which is not run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def valued(computed: Tensor, value: Tensor) -> Tensor:
    """``value``, with the gradient of ``computed``; both have one shape."""
    out: Tensor = _Valued.apply(computed, value)
    return out


def given(x: Tensor, weight: Tensor, value: Tensor, residual: Tensor | None = None) -> Tensor:
    """``value``, with the gradients of ``x @ weight.T + residual``."""
    out: Tensor = _Given.apply(x, weight, value, residual)
    return out


class _Valued(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, _computed: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, value: Tensor, residual: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.added = residual is not None
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (up,) = grads
        own = up.flatten(0, -2).t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return up @ weight, own, None, up if ctx.added else None
