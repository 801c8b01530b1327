"""What the Triton kernels share: bf16 as bits, rounding to integers, and one row's int8 form.

bf16 is handled as int16 bits with explicit rounding, so that it means the same under the compiler and under Triton's
interpreter, and equals the ``uint16`` pages of the CPU kernels.
"""

# Triton's own language is not annotated.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def kv_bits(pool: Tensor) -> Tensor:
    """A KV pool as the kernels take it: bfloat16 seen as int16, float32 as it is."""
    return pool.view(torch.int16) if pool.dtype == torch.bfloat16 else pool


@triton.jit
def widen_bf16(bits):
    """float32 of int16 bf16 bits."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def round_bf16(x):
    """float32 ``x`` rounded to the nearest bf16, ties to even, as float32."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def load_kv(pointers, mask, BF16: tl.constexpr):
    """float32 of KV elements; 0 where masked, whatever an unwritten slot holds."""
    if BF16:
        return widen_bf16(tl.load(pointers, mask=mask, other=0))
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def store_kv(pointers, x, mask, BF16: tl.constexpr):
    """Store float32 as KV elements."""
    if BF16:
        tl.store(pointers, (round_bf16(x).to(tl.int32, bitcast=True) >> 16).to(tl.int16), mask=mask)
    else:
        tl.store(pointers, x, mask=mask)


@triton.jit
def store_row(x, out, scales, row, width, mask, INT8: tl.constexpr, BLOCK: tl.constexpr):
    """Store one row ``[BLOCK]`` (masked to ``width``) as float32, or as int8 with its scale amax / 127."""
    column = tl.arange(0, BLOCK)
    at = out + row.to(tl.int64) * width + column
    if INT8:
        amax = tl.max(tl.abs(x), axis=0)
        inverse = tl.div_rn(127.0, tl.where(amax > 0, amax, 1.0))
        # Adding 1.5 * 2**23 leaves a small float rounded to an integer, ties to even.
        rounded = (x * inverse + 12582912.0) - 12582912.0
        tl.store(at, rounded.to(tl.int8), mask=mask)
        tl.store(scales + row, tl.div_rn(amax, 127.0))
    else:
        tl.store(at, x, mask=mask)
