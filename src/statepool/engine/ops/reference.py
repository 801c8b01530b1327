"""The plain twin of every kernel of a decoder layer, in torch, on any device.

Each function has the signature of its namesake in ``statepool.native.kernels``, takes numpy arrays or torch tensors,
and writes into its ``out`` arguments. It performs the same roundings in the same order, so its bits equal the native
kernels' bits; rows never meet, so neither batch nor chunking can change them. float64 arrays (pool included) run the
same code in float64: the oracle. It is also what runs where the native module is missing: correct, and slow.

Shapes: ``T`` rows (tokens of this step), ``H`` hidden size, ``hd`` head_dim, ``P`` positions in the RoPE table.
A KV pool is ``[blocks][layers][2][kv_heads][16 * hd]``; a K page is ``[hd][16]``, a V page ``[16][hd]``; bf16 pages
are ``uint16`` arrays (or ``torch.bfloat16`` tensors). ``slot = block * 16 + offset``.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from statepool.engine.ops.arithmetic import LANES, divide, exp, fma, lane_sum_of_squares, tree_sum

PAGE = 16
"""Tokens of one block."""
SEGMENT_PAGES = 64
"""Pages of one segment: attention starts afresh at each, and finished segments are merged in order."""
ROW_CHUNK = 32

Array = Any
"""A numpy array or a torch tensor."""


class LinearOp(Protocol):
    """What a layer needs of a linear operator (see ``ops.linear``)."""

    n: int
    k: int

    def apply(self, x: Array, out: Array) -> None:
        """out ``[M,N]`` = x ``[M,K]`` times the weight, transposed, plus the bias."""


def tensor(array: Array) -> Tensor:
    """The array as a tensor on the same memory."""
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def pages(pool: Array) -> Tensor:
    """The KV pool as a tensor of floats (bf16 where it was ``uint16``) on the same memory."""
    t = tensor(pool)
    return t.view(torch.bfloat16) if t.dtype == torch.uint16 else t


def rms_norm(x: Array, w: Array, eps: float, out: Array) -> None:
    """out = x / sqrt(mean(x²) + eps) * w over the last axis."""
    tensor(out).copy_(_norm(tensor(x), tensor(w), eps))


def _norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    eps32 = torch.tensor(eps, dtype=x.dtype, device=x.device)
    mean = divide(lane_sum_of_squares(x), x.shape[-1])
    # torch's float32 sqrt is not correctly rounded on every CPU; rounding the float64 root is.
    inverse = divide(1.0, torch.sqrt((mean + eps32).double()).to(x.dtype))
    return (x * inverse[..., None]) * w


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split RoPE of ``x [T, heads, hd]`` with ``cos``, ``sin`` ``[T, hd/2]``."""
    low, high = x.chunk(2, dim=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    return torch.cat([fma(low, c, -(high * s)), fma(high, c, low * s)], dim=-1)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of ``[T, 2 * inter]``, gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (gate / (1.0 + exp(-gate))) * up


def scatter_kv(k: Tensor, v: Tensor, slots: Array, pool: Array, layer: int) -> None:
    """Write ``k``, ``v`` ``[T, kv_heads, hd]`` into their slots of one layer, rounded to the pool's type."""
    kv = pages(pool)
    slot = tensor(slots).long()
    block, offset = slot // PAGE, slot % PAGE
    heads, width = k.shape[1], k.shape[2]
    keys = kv[:, layer, 0].unflatten(-1, (width, PAGE))
    values = kv[:, layer, 1].unflatten(-1, (PAGE, width))
    for head in range(heads):
        keys[block, head, :, offset] = k[:, head].to(kv.dtype)
        values[block, head, offset, :] = v[:, head].to(kv.dtype)


def attention(
    q: Array,
    pool: Array,
    layer: int,
    block_tables: Array,
    query_start: Array,
    context_len: Array,
    scale: float,
    out: Array,
    lse: Array | None = None,
) -> None:
    """Causal attention of ``q [T, heads, hd]`` over the paged pool; out ``[T, heads * hd]``, lse ``[T, heads]``.

    Request r owns rows ``query_start[r]:query_start[r + 1]``, which are the last tokens of its ``context_len[r]``;
    its page i is block ``block_tables[r, i]``.
    """
    rows, heads, width = tensor(q).shape
    segments = _segment_count(context_len)
    dtype, device = tensor(out).dtype, tensor(out).device
    m = torch.zeros(rows, heads, segments, dtype=dtype, device=device)
    l, acc = torch.zeros_like(m), torch.zeros(rows, heads, segments, width, dtype=dtype, device=device)
    attention_segments(q, pool, layer, block_tables, query_start, context_len, scale, 0, m, l, acc)
    merge_segments(m, l, acc, out, lse)


def attention_segments(
    q: Array,
    pool: Array,
    layer: int,
    block_tables: Array,
    query_start: Array,
    context_len: Array,
    scale: float,
    first: int,
    m: Array,
    l: Array,
    acc: Array,
) -> None:
    """Un-normalised attention per segment of 1024 tokens, for segments ``first`` to ``first + S``.

    m, l ``[T, heads, S]``: maximum score and sum of exponentials; acc ``[T, heads, S, hd]``. A segment that a row does
    not see has m = -inf, l = 0, acc = 0. Only the pages of these segments are read.
    """
    queries, kv, table = tensor(q), pages(pool), tensor(block_tables)
    starts, contexts = tensor(query_start).tolist(), tensor(context_len).tolist()
    out_m, out_l, out_acc = tensor(m), tensor(l), tensor(acc)
    out_m.fill_(-math.inf)
    out_l.zero_()
    out_acc.zero_()
    for r, context in enumerate(contexts):
        begin, end = starts[r], starts[r + 1]
        for low in range(begin, end, ROW_CHUNK):
            high = min(low + ROW_CHUNK, end)
            position = torch.arange(low, high, device=queries.device) + (context - end)
            for s in range(out_m.shape[2]):
                from_page = (first + s) * SEGMENT_PAGES
                to_page = min(from_page + SEGMENT_PAGES, -(-(context - end + high) // PAGE))
                if from_page < to_page:
                    blocks = table[r, from_page:to_page].long()
                    part = _segment(queries[low:high], kv[blocks, layer], position - from_page * PAGE, scale)
                    out_m[low:high, :, s], out_l[low:high, :, s], out_acc[low:high, :, s] = part


def _segment(q: Tensor, kv: Tensor, position: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """One segment for rows of one request: kv ``[pages, 2, kv_heads, 16 * hd]``, position relative to the segment."""
    rows, heads, width = q.shape
    count, _, kv_heads, _ = kv.shape
    grouped = q.unflatten(1, (kv_heads, -1)).unsqueeze(3)
    keys = kv[:, 0].to(q.dtype).unflatten(-1, (width, PAGE)).permute(1, 2, 0, 3)[None, :, None]
    values = kv[:, 1].to(q.dtype).unflatten(-1, (PAGE, width))
    chains = [torch.zeros(rows, kv_heads, heads // kv_heads, count, PAGE, dtype=q.dtype, device=q.device)] * 2
    for d in range(width):
        chains[d % 2] = fma(grouped[..., d, None], keys[:, :, :, d], chains[d % 2])
    scores = (chains[0] + chains[1]) * torch.tensor(scale, dtype=q.dtype, device=q.device)
    token = torch.arange(count * PAGE, device=q.device).view(count, PAGE)
    seen = (token[None] <= position[:, None, None])[:, None, None]
    scores = scores.masked_fill(~seen, -math.inf)

    m = torch.full(scores.shape[:3], -math.inf, dtype=q.dtype, device=q.device)
    l, acc = torch.zeros_like(m), torch.zeros(*m.shape, width, dtype=q.dtype, device=q.device)
    for page in range(count):
        s = scores[:, :, :, page]
        top = torch.maximum(m, s.amax(-1))
        some = top != -math.inf  # not a number is something
        shift = torch.where(some, top, torch.zeros_like(top))
        p, correction = exp(s - shift[..., None]), exp(m - shift)
        l = torch.where(some, l * correction + tree_sum(p), l)
        acc = torch.where(some[..., None], acc * correction[..., None], acc)
        for j in range(PAGE):
            v = values[page, :, j][None, :, None]
            acc = torch.where(seen[..., page, j, None], fma(p[..., j, None], v, acc), acc)
        m = top
    return m.flatten(1, 2), l.flatten(1, 2), acc.flatten(1, 2)


def merge_segments(m: Array, l: Array, acc: Array, out: Array, lse: Array | None = None) -> None:
    """Fold the segments of ``attention_segments`` in order; out ``[T, heads * hd]``, lse ``[T, heads]``."""
    ms, ls, accs = tensor(m), tensor(l), tensor(acc)
    parts = ms[:, :, 0], ls[:, :, 0], accs[:, :, 0]
    for s in range(1, ms.shape[2]):
        parts = _fold(*parts, ms[:, :, s], ls[:, :, s], accs[:, :, s])
    top, total, sums = parts
    tensor(out).copy_((sums / total[..., None]).flatten(1))
    if lse is not None:
        tensor(lse).copy_(top.double() + torch.log(total.double()))


def fold_segments(m: Array, l: Array, acc: Array, m2: Array, l2: Array, acc2: Array) -> None:
    """Fold a later segment (m2, l2 ``[T, heads]``, acc2 ``[T, heads, hd]``) into an earlier one, in place."""
    whole, later = [tensor(a) for a in (m, l, acc)], [tensor(a) for a in (m2, l2, acc2)]
    for old, new in zip(whole, _fold(*whole, *later), strict=True):
        old.copy_(new)


def _fold(m: Tensor, l: Tensor, acc: Tensor, m2: Tensor, l2: Tensor, acc2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    some = l2 != 0  # so is not a number
    new = torch.maximum(m, m2)
    shift = torch.where(new != -math.inf, new, torch.zeros_like(new))
    e1, e2 = exp(m - shift), exp(m2 - shift)
    acc = torch.where(some[..., None], fma(acc2, e2[..., None], acc * e1[..., None]), acc)
    return torch.where(some, new, m), torch.where(some, fma(l2, e2, l * e1), l), acc


def head(x: Array, norm: Array, eps: float, linear: LinearOp, logits: Array) -> None:
    """logits ``[R, V]`` of hidden rows ``[R, H]``: final norm, then the output matrix."""
    linear.apply(_norm(tensor(x), tensor(norm), eps), tensor(logits))


def embed(table: Array, tokens: Array, out: Array) -> None:
    """out ``[T, H]`` = rows ``tokens`` of ``table [V, H]`` (float32, or bf16 as ``uint16``)."""
    tensor(out).copy_(pages(table)[tensor(tokens).long()])


class DecoderLayer:
    """One decoder layer but for its attention, which is called between the two halves and may be any backend.

    ``qkv``, ``o``, ``gate_up``, ``down`` are linear operators; norms are float32 ``[H]``, ``q_norm`` and ``k_norm``
    ``[hd]`` or ``None``.
    """

    def __init__(
        self,
        qkv: LinearOp,
        o: LinearOp,
        gate_up: LinearOp,
        down: LinearOp,
        input_norm: Array,
        post_norm: Array,
        q_norm: Array | None,
        k_norm: Array | None,
        eps: float,
        heads: int,
        kv_heads: int,
        head_dim: int,
    ) -> None:
        self.qkv, self.o, self.gate_up, self.down = qkv, o, gate_up, down
        self.input_norm, self.post_norm = tensor(input_norm), tensor(post_norm)
        self.q_norm = None if q_norm is None else tensor(q_norm)
        self.k_norm = None if k_norm is None else tensor(k_norm)
        self.eps, self.heads, self.kv_heads, self.head_dim = eps, heads, kv_heads, head_dim

    def before_attention(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        positions: Array,
        slots: Array,
        pool: Array,
        layer: int,
        q: Array,
    ) -> None:
        """x ``[T, H]`` to q ``[T, heads * hd]``; K and V go to ``slots`` of the pool. cos, sin are ``[P, hd/2]``."""
        rows = tensor(x)
        qkv = self._apply(self.qkv, _norm(rows, self.input_norm, self.eps))
        parts = qkv.unflatten(-1, (-1, self.head_dim)).split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        queries, keys, values = parts
        if self.q_norm is not None:
            queries = _norm(queries, self.q_norm, self.eps)
        if self.k_norm is not None:
            keys = _norm(keys, self.k_norm, self.eps)
        at = tensor(positions).long()
        c, s = tensor(cos)[at], tensor(sin)[at]
        scatter_kv(rotate(keys, c, s), values, slots, pool, layer)
        tensor(q).copy_(rotate(queries, c, s).reshape(tensor(q).shape))

    def after_attention(self, x: Array, attn: Array) -> None:
        """Output projection and MLP, each added to the residual stream x ``[T, H]`` in place."""
        rows = tensor(x)
        rows += self._apply(self.o, tensor(attn))
        gate_up = self._apply(self.gate_up, _norm(rows, self.post_norm, self.eps))
        rows += self._apply(self.down, silu_mul(gate_up))

    @staticmethod
    def _apply(linear: LinearOp, x: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], linear.n, dtype=x.dtype, device=x.device)
        linear.apply(x.contiguous(), out)
        return out


def _segment_count(context_len: Array) -> int:
    longest = int(tensor(context_len).max()) if len(context_len) else 0
    return max(1, -(-longest // (SEGMENT_PAGES * PAGE)))


__all__ = [
    "LANES",
    "PAGE",
    "SEGMENT_PAGES",
    "DecoderLayer",
    "LinearOp",
    "attention",
    "attention_segments",
    "embed",
    "fold_segments",
    "head",
    "merge_segments",
    "pages",
    "rms_norm",
    "rotate",
    "scatter_kv",
    "silu_mul",
]
