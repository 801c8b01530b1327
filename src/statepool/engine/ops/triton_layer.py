"""A decoder layer in Triton: norm, rotation with the KV scatter, gated activation, and the linear operators between.

Each program owns one row (or one head of one row), so neither batch nor chunk can change a bit of it.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statepool.engine.ops.triton_linear import Linear, Rows, empty_rows, quantise_rows
from statepool.engine.ops.triton_numbers import kv_bits, store_kv, store_row


@triton.jit
def _norm_kernel(x, weight, out, scales, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, INT8: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    v = tl.load(x + row.to(tl.int64) * WIDTH + d, mask=d < WIDTH, other=0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(v * v, axis=0) / WIDTH + eps)
    y = v * inverse * tl.load(weight + d, mask=d < WIDTH, other=0.0)
    store_row(y, out, scales, row, WIDTH, d < WIDTH, INT8, BLOCK)


@triton.jit
def _silu_kernel(gate_up, out, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, INT8: tl.constexpr):
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    at = gate_up + row.to(tl.int64) * (2 * WIDTH) + d
    gate = tl.load(at, mask=d < WIDTH, other=0.0)
    up = tl.load(at + WIDTH, mask=d < WIDTH, other=0.0)
    y = gate / (1.0 + tl.exp(tl.minimum(-gate, 88.0))) * up
    store_row(y, out, scales, row, WIDTH, d < WIDTH, INT8, BLOCK)


@triton.jit(do_not_specialize=["layer"])
def _rotate_kernel(
    qkv, norms, cos, sin, positions, slots, pool, q, eps, layer,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_STRIDE: tl.constexpr,
    HALF_P: tl.constexpr, NORM: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    half: tl.constexpr = WIDTH // 2
    i = tl.arange(0, HALF_P)
    real = i < half
    source = qkv + (row.to(tl.int64) * (HEADS + 2 * KV_HEADS) + head) * WIDTH + i
    low = tl.load(source, mask=real, other=0.0)
    high = tl.load(source + half, mask=real, other=0.0)
    if head < HEADS + KV_HEADS:
        if NORM:
            inverse = 1.0 / tl.sqrt((tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / WIDTH + eps)
            weight = norms + (head >= HEADS).to(tl.int32) * WIDTH + i
            low = low * inverse * tl.load(weight, mask=real, other=0.0)
            high = high * inverse * tl.load(weight + half, mask=real, other=0.0)
        angle = tl.load(positions + row).to(tl.int64) * half + i
        c = tl.load(cos + angle, mask=real, other=0.0)
        s = tl.load(sin + angle, mask=real, other=0.0)
        turned = low * c - high * s
        high = high * c + low * s
        low = turned
    if head < HEADS:
        to = q + (row.to(tl.int64) * HEADS + head) * WIDTH + i
        tl.store(to, low, mask=real)
        tl.store(to + half, high, mask=real)
    else:
        # Pages of a block: the keys of every KV head, then the values; the head index counts through both.
        slot = tl.load(slots + row).to(tl.int64)
        page = pool + slot // 16 * BLOCK_STRIDE + (layer * 2 * KV_HEADS + head - HEADS) * (16 * WIDTH)
        if head < HEADS + KV_HEADS:
            at = page + slot % 16 + i * 16
            store_kv(at, low, real, BF16)
            store_kv(at + half * 16, high, real, BF16)
        else:
            at = page + slot % 16 * WIDTH + i
            store_kv(at, low, real, BF16)
            store_kv(at + half, high, real, BF16)


def norm_rows(x: Tensor, weight: Tensor, eps: float, int8: bool) -> Rows:
    """RMSNorm of float32 rows ``[T, H]``, as float32 or int8 with a scale per row."""
    out, scales = empty_rows(x.shape[0], x.shape[1], int8, x.device)
    if x.shape[0]:
        block = triton.next_power_of_2(x.shape[1])
        _norm_kernel[(x.shape[0],)](x, weight, out, scales, eps, WIDTH=x.shape[1], BLOCK=block, INT8=int8)
    return out, scales


def silu_rows(gate_up: Tensor, int8: bool) -> Rows:
    """silu(gate) * up of ``[T, 2 * inter]``, gate first, as float32 or int8 with a scale per row."""
    width = gate_up.shape[1] // 2
    out, scales = empty_rows(gate_up.shape[0], width, int8, gate_up.device)
    if gate_up.shape[0]:
        block = triton.next_power_of_2(width)
        _silu_kernel[(gate_up.shape[0],)](gate_up, out, scales, WIDTH=width, BLOCK=block, INT8=int8)
    return out, scales


def rms_norm(x: Tensor, w: Tensor, eps: float, out: Tensor) -> None:
    """As ``reference.rms_norm``, for float32 ``[T, H]``."""
    out.copy_(norm_rows(x, w, eps, False)[0])


def rotate_scatter(
    qkv: Tensor,
    norms: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    pool: Tensor,
    layer: int,
    q: Tensor,
    heads: int,
) -> None:
    """Norm (``norms [2, hd]``: query, key) and rotate; queries go to ``q [T, heads * hd]``, the rest to the pool."""
    rows, kv_heads, width, pages = qkv.shape[0], pool.shape[3], pool.shape[4] // 16, kv_bits(pool)
    if rows:
        _rotate_kernel[(rows, heads + 2 * kv_heads)](
            qkv, norms, cos, sin, positions, slots, pages, q, eps, layer,
            HEADS=heads, KV_HEADS=kv_heads, WIDTH=width, BLOCK_STRIDE=pool.stride(0),
            HALF_P=triton.next_power_of_2(width // 2), NORM=norms is not None, BF16=pages.dtype == torch.int16,
        )  # fmt: skip


class DecoderLayer:
    """As ``reference.DecoderLayer``, on tensors of one device and ``triton_linear.Linear`` operators."""

    def __init__(
        self,
        qkv: Linear,
        o: Linear,
        gate_up: Linear,
        down: Linear,
        input_norm: Tensor,
        post_norm: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        heads: int,
        kv_heads: int,
        head_dim: int,
    ) -> None:
        if (q_norm is None) != (k_norm is None):
            raise ValueError("q_norm and k_norm: give both or neither")
        self.qkv, self.o, self.gate_up, self.down = qkv, o, gate_up, down
        self.input_norm, self.post_norm = input_norm, post_norm
        self.head_norms = None if q_norm is None or k_norm is None else torch.stack([q_norm, k_norm]).contiguous()
        self.eps, self.heads, self.kv_heads, self.head_dim = eps, heads, kv_heads, head_dim

    def before_attention(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        pool: Tensor,
        layer: int,
        q: Tensor,
    ) -> None:
        """See ``reference.DecoderLayer.before_attention``."""
        qkv = torch.empty(x.shape[0], self.qkv.n, dtype=torch.float32, device=x.device)
        self.qkv.run(norm_rows(x, self.input_norm, self.eps, self.qkv.int8), qkv)
        rotate_scatter(qkv, self.head_norms, self.eps, cos, sin, positions, slots, pool, layer, q, self.heads)

    def after_attention(self, x: Tensor, attn: Tensor) -> None:
        """See ``reference.DecoderLayer.after_attention``."""
        self.o.run(quantise_rows(attn) if self.o.int8 else (attn, None), x, add=True)
        gate_up = torch.empty(x.shape[0], self.gate_up.n, dtype=torch.float32, device=x.device)
        self.gate_up.run(norm_rows(x, self.post_norm, self.eps, self.gate_up.int8), gate_up)
        self.down.run(silu_rows(gate_up, self.down.int8), x, add=True)
