"""The arithmetic every kernel is built from, in torch: one rounding per named operation, in a fixed order.

The native kernels promise equal bits on every instruction set; these functions give the same bits again on any
torch device, because they too round exactly where the kernel does. float64 tensors take the plain mathematical
route instead (``torch.exp``, unfused products): that is the oracle mode of the same code.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 16
"""Width of the vector type of the native kernels; sums are per lane, then a fixed tree."""

LOG2E = float.fromhex("0x1.715476p+0")
ROUND_MAGIC = 12582912.0
"""1.5 * 2**23: adding it rounds a small float to an integer."""
LN2_HIGH = 0.693359375
LN2_LOW = float.fromhex("-0x1.bd0106p-13")
EXP_LOWEST = float.fromhex("-0x1.5d3334p+6")
EXP_HIGHEST = 88.0
EXP_COEFFICIENTS = (
    float.fromhex("0x1.6a23d0p-10"),
    float.fromhex("0x1.123a20p-7"),
    float.fromhex("0x1.5558f2p-5"),
    float.fromhex("0x1.555492p-3"),
    float.fromhex("0x1.fffffcp-2"),
    1.0,
    1.0,
)
"""Minimax polynomial of exp on [-ln2/2, ln2/2], highest power first; relative error of the whole below 8e-8."""


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """``a * b + c`` of float32 tensors with one rounding, as the machine instruction gives it.

    The product is exact in float64. The float64 sum may be rounded, and rounding it again to float32 errs only where
    it lies exactly half-way between two floats: there the lost remainder decides.
    """
    if a.dtype == torch.float64:
        return a * b + c
    x = a.double() * (b.double() if isinstance(b, Tensor) else b)
    y = c.double() if isinstance(c, Tensor) else torch.full_like(x, c)
    total = x + y
    nearest = total.float()
    rest = total - nearest.double()
    other = total + rest
    tie = (rest != 0) & (other.float().double() == other)
    if not bool(tie.any()):
        return nearest
    back = total - x
    lost = (x - (total - back)) + (y - back)
    low, high = torch.minimum(nearest, other.float()), torch.maximum(nearest, other.float())
    return torch.where(tie & (lost > 0), high, torch.where(tie & (lost < 0), low, nearest))


def divide(a: Tensor | float, b: Tensor | float) -> Tensor:
    """``a / b`` of float32 tensors with one rounding; either may be a number.

    ``number / tensor`` in torch is a reciprocal times the number, and on CUDA ``tensor / number`` is a product too:
    two roundings. Two tensors are divided.
    """
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    return torch.div(*(t if isinstance(t, Tensor) else torch.full_like(like, t) for t in (a, b)))


def exp(x: Tensor) -> Tensor:
    """The one exponential of all kernels: 0 below -87.3, arguments above 88 count as 88, exp(0) is exactly 1."""
    if x.dtype == torch.float64:
        return torch.exp(x)
    clamped = x.clamp(EXP_LOWEST, EXP_HIGHEST)
    n = fma(clamped, LOG2E, ROUND_MAGIC) - ROUND_MAGIC
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, clamped))
    y = torch.full_like(r, EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        y = fma(y, r, coefficient)
    power = ((n.to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(x < EXP_LOWEST, torch.zeros_like(y), y * power)


def tree_sum(x: Tensor) -> Tensor:
    """Sum over the last axis of 16 lanes: 16 -> 8 -> 4 -> 2 -> 1, lane i with lane i + half."""
    width = x.shape[-1]
    while width > 1:
        width //= 2
        x = x[..., :width] + x[..., width : 2 * width]
    return x[..., 0]


def lane_sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares over the last axis: 16 lane accumulators, ascending, then the tree."""
    columns = torch.nn.functional.pad(x, (0, -x.shape[-1] % LANES)).unflatten(-1, (-1, LANES))
    total = torch.zeros_like(columns[..., 0, :])
    for i in range(columns.shape[-2]):
        total = fma(columns[..., i, :], columns[..., i, :], total)
    return tree_sum(total)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values ``[T,K]`` and scales ``[T]`` of float32 rows: amax / 127 per row, round half to even.

    A row of zeros (or so small that 127 / amax overflows) has scale 0, a row with a NaN or infinity scale NaN.
    """
    amax = x.abs().amax(-1)
    inverse = divide(127.0, amax)
    usable = torch.isfinite(amax) & torch.isfinite(inverse)
    scales = torch.where(usable, divide(amax, 127.0), torch.where(torch.isfinite(amax), 0.0, torch.nan))
    values = torch.where(usable[:, None], torch.round(x * inverse[:, None]), 0.0)
    return values.to(torch.int8), scales
