"""Log-probability and entropy with the gradient written out: a row per learned token, a part of the rows at a time.

A row is as wide as the vocabulary. By torch's own operations each of its steps, there and back, is a tensor of all
rows that leaves the cache; here softmax, entropy and gradient of a part are done before the next begins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ROWS = 256
"""Rows of a part: of 1024 tokens each they take a megabyte. The results do not depend on it."""


def chosen(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's target, and the row's entropy, which has no gradient: ``[rows]`` both."""
    logs, entropy = _Chosen.apply(logits, targets)
    return logs, entropy


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logs, entropy = logits.new_empty(len(logits)), logits.new_empty(len(logits))
        for at in range(0, len(logits), _ROWS):
            part = slice(at, at + _ROWS)
            all_logs = logits[part].log_softmax(-1)
            logs[part] = all_logs.gather(1, targets[part, None])[:, 0]
            entropy[part] = -(all_logs.exp().mul_(all_logs)).sum(-1)
        ctx.save_for_backward(logits, targets)
        ctx.mark_non_differentiable(entropy)
        return logs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        out = torch.empty_like(logits)
        for at in range(0, len(logits), _ROWS):
            part = slice(at, at + _ROWS)
            up = grads[0][part, None]
            torch.mul(logits[part].softmax(-1), -up, out=out[part])
            out[part].scatter_add_(1, targets[part, None], up)
        return out, None
