"""The torch twin of the native ``Linear``: the same quantisation and the same bits, on any device.

Products of quantised values are exact: a float32 matrix product over at most 1024 columns of integers up to 127 stays
below 2**24, so no order of summation can change it. Float modes add column by column, in order, with one rounding each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statepool.engine.ops.arithmetic import divide, fma, quantise_rows

GROUP = 64
EXACT_COLUMNS = 1024
MODES = ("int8", "int4", "bf16", "fp32")


class Linear:
    """``x W^T + bias`` in one of four weight modes.

    Args:
        weight: float32 or bf16 (``uint16`` bits) ``[n, k]``, a numpy array or a tensor.
        mode: ``int8`` (a scale per output), ``int4`` (a bf16 scale per group of 64 columns), ``bf16`` or ``fp32``.
        bias: float32 ``[n]`` or None.

    Raises:
        ValueError: an unknown mode, or NaN or infinity among the weights.
    """

    def __init__(self, weight: Any, mode: str = "int8", bias: Any = None) -> None:
        if mode not in MODES:
            raise ValueError(f"mode: '{mode}' is none of {', '.join(MODES)}")
        w = weight if isinstance(weight, Tensor) else torch.from_numpy(weight)
        w = (w.view(torch.bfloat16) if w.dtype == torch.uint16 else w).float()
        if not bool(torch.isfinite(w).all()):
            raise ValueError("weight: NaN or infinity among the weights")
        self.mode, (self.n, self.k) = mode, w.shape
        self.bias = None if bias is None else torch.as_tensor(bias)
        if mode == "int8":
            self.scales = divide(w.abs().amax(1), 127.0)
            self.values = _round_to(w, self.scales[:, None], -127, 127)
        elif mode == "int4":
            groups = torch.nn.functional.pad(w, (0, -self.k % GROUP)).unflatten(1, (-1, GROUP))
            top, bottom = groups.amax(2), groups.amin(2)
            self.scales = (torch.where(top > -bottom, top, bottom) / -8.0).bfloat16().float()
            self.values = _round_to(groups, self.scales[..., None], -8, 7)
        else:
            self.values = w.bfloat16().float() if mode == "bf16" else w.clone()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.values, getattr(self, "scales", None), self.bias) if t is not None)

    def apply(self, x: Any, out: Any, residual: Any = None) -> None:
        """out ``[M, n]`` = x ``[M, k]`` times the weight, transposed, plus the bias, plus the residual ``[M, n]``."""
        rows, to = (a if isinstance(a, Tensor) else torch.from_numpy(a) for a in (x, out))
        y = self._floats(rows) if self.mode in ("bf16", "fp32") else self._integers(rows)
        if self.bias is not None:
            y = y + self.bias
        if residual is not None:
            y = (residual if isinstance(residual, Tensor) else torch.from_numpy(residual)) + y
        to.copy_(y)

    def dequantize(self, out: Any) -> None:
        """Write the weights as used, float32 ``[n, k]``."""
        w = self.values
        if self.mode == "int8":
            w = w * self.scales[:, None]
        elif self.mode == "int4":
            w = (w * self.scales[..., None]).flatten(1)[:, : self.k]
        (out if isinstance(out, Tensor) else torch.from_numpy(out)).copy_(w)

    def _integers(self, x: Tensor) -> Tensor:
        data, row_scales = quantise_rows(x)
        values = data.float()
        if self.mode == "int8":
            total = torch.zeros(x.shape[0], self.n, dtype=torch.int32, device=x.device)
            for low in range(0, self.k, EXACT_COLUMNS):
                part = slice(low, low + EXACT_COLUMNS)
                total += (values[:, part] @ self.values[:, part].T).to(torch.int32)
            return (total.float() * self.scales) * row_scales[:, None]
        values = torch.nn.functional.pad(values, (0, -self.k % GROUP)).unflatten(1, (-1, GROUP))
        acc = torch.zeros(x.shape[0], self.n, device=x.device)
        for g in range(values.shape[1]):
            acc = fma(self.scales[:, g], values[:, g] @ self.values[:, g].T, acc)
        return acc * row_scales[:, None]

    def _floats(self, x: Tensor) -> Tensor:
        acc = torch.zeros(x.shape[0], self.n, device=x.device)
        for k in range(self.k):
            acc = fma(x[:, k, None], self.values[None, :, k], acc)
        return acc


def _round_to(w: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    safe = torch.where(scales == 0, torch.ones_like(scales), scales)
    return torch.where(scales == 0, torch.zeros_like(w), torch.round(w / safe).clamp(low, high))
