"""Linear operators in Triton: exact integers, or float32 sums in one fixed order of k.

The tile shape is one for all, never chosen by the number of rows, so a row's bits do not depend on its batch. Integer
modes would be exact under any tiling; the float modes are not, and keep the rule. The tile has not been tuned yet.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from statepool.engine.ops import linear
from statepool.engine.ops.triton_numbers import round_bf16, store_row, widen_bf16

Rows = tuple[Tensor, Tensor | None]
"""float32 ``[T, K]`` and None, or int8 ``[T, K]`` and float32 scales ``[T]``."""

TILE = {"TILE_M": 32, "TILE_N": 64}
INTERPRETED: bool = triton.knobs.runtime.interpret
"""Triton's interpreter multiplies bf16 as if the bits were integers; there the same values multiply as float32."""


@triton.jit
def _finish(y, bias, out, at, n, mask, N: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr):
    if BIAS:
        y += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    if ADD:
        y += tl.load(out + at, mask=mask, other=0.0)
    tl.store(out + at, y, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _integer_kernel(
    x, x_scales, w, w_scales, bias, out, rows, N: tl.constexpr, K: tl.constexpr, INT4: tl.constexpr,
    BIAS: tl.constexpr, ADD: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1) * TILE_M + tl.arange(0, TILE_M)
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    x_row = x + m.to(tl.int64)[:, None] * K
    n64 = n.to(tl.int64)[None, :]
    groups: tl.constexpr = (K + 63) // 64
    if INT4:
        # A byte holds columns j (low nibble) and j + 32 (high) of its group of 64, each plus 8.
        j = tl.arange(0, 32)
        total = tl.zeros([TILE_M, TILE_N], tl.float32)
        for g in range(groups):
            pair = tl.load(w + (n64 * groups + g) * 32 + j[:, None], mask=(n < N)[None, :], other=0)
            k = g * 64 + j
            x_low = tl.load(x_row + k[None, :], mask=(m < rows)[:, None] & (k < K)[None, :], other=0)
            x_high = tl.load(x_row + k[None, :] + 32, mask=(m < rows)[:, None] & (k + 32 < K)[None, :], other=0)
            part = tl.dot(x_low, (pair & 15).to(tl.int8) - 8, out_dtype=tl.int32)
            part = tl.dot(x_high, (pair >> 4).to(tl.int8) - 8, part, out_dtype=tl.int32)
            scale = tl.load(w_scales + n.to(tl.int64) * groups + g, mask=n < N, other=0.0)
            total += part.to(tl.float32) * scale[None, :]
    else:
        j = tl.arange(0, 64)
        acc = tl.zeros([TILE_M, TILE_N], tl.int32)
        for g in range(groups):
            k = g * 64 + j
            a = tl.load(x_row + k[None, :], mask=(m < rows)[:, None] & (k < K)[None, :], other=0)
            b = tl.load(w + n64 * K + k[:, None], mask=(n < N)[None, :] & (k < K)[:, None], other=0)
            acc = tl.dot(a, b, acc, out_dtype=tl.int32)
        total = acc.to(tl.float32) * tl.load(w_scales + n, mask=n < N, other=0.0)[None, :]
    y = total * tl.load(x_scales + m, mask=m < rows, other=0.0)[:, None]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    _finish(y, bias, out, at, n, (m < rows)[:, None] & (n < N)[None, :], N, BIAS, ADD)


@triton.jit(do_not_specialize=["rows"])
def _float_kernel(
    x, w, bias, out, rows, N: tl.constexpr, K: tl.constexpr, BF16: tl.constexpr, TENSOR_CORES: tl.constexpr,
    BIAS: tl.constexpr, ADD: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1) * TILE_M + tl.arange(0, TILE_M)
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    j = tl.arange(0, 64)
    acc = tl.zeros([TILE_M, TILE_N], tl.float32)
    for start in range(0, K, 64):
        k = start + j
        a = tl.load(
            x + m.to(tl.int64)[:, None] * K + k[None, :], mask=(m < rows)[:, None] & (k < K)[None, :], other=0.0
        )
        b = tl.load(w + n.to(tl.int64)[None, :] * K + k[:, None], mask=(n < N)[None, :] & (k < K)[:, None], other=0)
        if BF16:
            # Three bf16 slices hold all 24 bits of an activation, and their products are exact in float32.
            wide = widen_bf16(b)
            for _ in tl.static_range(3):
                part = round_bf16(a)
                if TENSOR_CORES:
                    acc = tl.dot(part.to(tl.bfloat16), wide.to(tl.bfloat16), acc)
                else:
                    acc = tl.dot(part, wide, acc, input_precision="ieee")
                a = a - part
        else:
            acc = tl.dot(a, b, acc, input_precision="ieee")
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    _finish(acc, bias, out, at, n, (m < rows)[:, None] & (n < N)[None, :], N, BIAS, ADD)


@triton.jit
def _quantise_kernel(x, out, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    v = tl.load(x + row.to(tl.int64) * WIDTH + d, mask=d < WIDTH, other=0.0)
    store_row(v, out, scales, row, WIDTH, d < WIDTH, True, BLOCK)


def empty_rows(rows: int, width: int, int8: bool, device: torch.device) -> Rows:
    """Uninitialised rows of either kind."""
    if not int8:
        return torch.empty(rows, width, dtype=torch.float32, device=device), None
    scales = torch.empty(rows, dtype=torch.float32, device=device)
    return torch.empty(rows, width, dtype=torch.int8, device=device), scales


def quantise_rows(x: Tensor) -> Rows:
    """int8 values and a scale per row of float32 rows ``[T, K]``: amax / 127, ties to even."""
    out, scales = empty_rows(x.shape[0], x.shape[1], True, x.device)
    if x.shape[0]:
        block = triton.next_power_of_2(x.shape[1])
        _quantise_kernel[(x.shape[0],)](x, out, scales, WIDTH=x.shape[1], BLOCK=block)
    return out, scales


class Linear(linear.Linear):
    """The reference's weights, packed and multiplied by Triton.

    Args:
        weight, mode, bias: as for ``linear.Linear``, as tensors on the device.
    """

    def __init__(self, weight: Any, mode: str = "int8", bias: Any = None) -> None:
        super().__init__(weight, mode, bias)
        self.int8 = mode in ("int8", "int4")
        if mode == "int8":
            self.values = self.values.to(torch.int8)
        elif mode == "int4":
            nibbles = (self.values + 8).to(torch.uint8)
            self.values = (nibbles[..., :32] | nibbles[..., 32:] << 4).contiguous()
        elif mode == "bf16":
            self.values = self.values.bfloat16().view(torch.int16)
        self.values = self.values.contiguous()

    def apply(self, x: Tensor, out: Tensor, residual: Tensor | None = None) -> None:
        """See ``linear.Linear.apply``."""
        if residual is not None:
            out.copy_(residual)
        self.run(quantise_rows(x) if self.int8 else (x, None), out, add=residual is not None)

    def run(self, rows: Rows, out: Tensor, add: bool = False) -> None:
        """out ``[T, n]`` = rows times the weight, transposed, plus the bias; plus what ``out`` held if ``add``."""
        x, scales = rows
        if not x.shape[0]:
            return
        grid = (triton.cdiv(self.n, TILE["TILE_N"]), triton.cdiv(x.shape[0], TILE["TILE_M"]))
        flags = {"BIAS": self.bias is not None, "ADD": add, **TILE}
        if self.int8:
            _integer_kernel[grid](
                x, scales, self.values, self.scales, self.bias, out, x.shape[0],
                N=self.n, K=self.k, INT4=self.mode == "int4", **flags,
            )  # fmt: skip
        else:
            _float_kernel[grid](
                x, self.values, self.bias, out, x.shape[0],
                N=self.n, K=self.k, BF16=self.mode == "bf16", TENSOR_CORES=not INTERPRETED, **flags,
            )  # fmt: skip
