"""What one attention worker holds and computes: its share of every KV block, and the kernels over it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from statepool.core.errors import Corruption
from statepool.engine.attention.remote.protocol import Plan
from statepool.kv.layout import BLOCK_SIZE, KVLayout

__all__ = ["SEGMENT", "Share"]

F32 = npt.NDArray[np.float32]

SEGMENT = 1024
"""Tokens the kernels fold at a time (native/attention.h); what is computed apart is whole segments."""


class Share:
    """Keys and values of some heads, requests or stretches, and the attention of queries over them.

    The attention of a lane has two halves: ``begin`` reads the whole pages before the lane's own rows, which needs
    no key of theirs; ``end`` reads the rest once ``append`` has put them in. Together they do exactly the operations
    of one call, in its order, so the bits are those of attention in the model's own process.

    Args:
        ops: ``statepool.native.kernels``.
        layout: of the share; its ``kv_heads`` are this worker's.
        blocks: how many block numbers there are; memory is taken as they are written.
    """

    def __init__(self, ops: Any, layout: KVLayout, blocks: int) -> None:
        self._ops = ops
        self.layout = layout
        self.storage = layout.allocate(blocks)
        self._scale = layout.head_dim**-0.5
        self._plans: dict[int, Plan] = {}
        self._under_way: dict[int, _UnderWay] = {}

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """One token's keys and values."""
        return (2, self.layout.kv_heads, self.layout.head_dim)

    def plan(self, plan: Plan) -> None:
        """Take the arrays of a lane's next step; what was under way is given up."""
        self._under_way.pop(plan.lane, None)
        # Copied out of their message, where they lie at any address.
        names = ("tables", "query_start", "context_len", "slots", "parts")
        arrays = {name: np.array(getattr(plan, name)) for name in names}
        self._plans[plan.lane] = msgspec.structs.replace(plan, **arrays)

    def begin(self, lane: int, layer: int, query: F32) -> bool:
        """Start on queries ``[T, heads, head_dim]``; whether keys and values have to come before the end.

        Raises:
            Corruption: no plan was sent for them.
        """
        plan = self._plan(lane)
        state = self._under_way[lane] = _UnderWay(layer, query)
        if plan.parts.size:
            state.parts = [self._part(state, plan, r, s) if _old(plan, r, s) else None for r, s in plan.parts.tolist()]
        elif query.size:
            rows, heads, width = query.shape
            state.m, state.l = np.empty((rows, heads, 2), np.float32), np.empty((rows, heads, 2), np.float32)
            state.acc = np.empty((rows, heads, 2, width), np.float32)
            self._ops.attention_begin(*self._arguments(state, plan), state.m, state.l, state.acc)
        return bool(plan.slots.size)

    def after(self, lane: int) -> int:
        """How many layers of incoming blocks have to be there for the last layer of a lane's step."""
        return self._plan(lane).after

    def waits(self, lane: int) -> bool:
        """Whether queries of this lane wait for their end."""
        return lane in self._under_way

    def append(self, lane: int, layer: int, kv: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Put rows ``[T, 2, kv_heads, head_dim]`` into the slots of the plan; the blocks that were begun with them.

        Raises:
            Corruption: they are not as many as the plan has slots.
        """
        slots = self._plan(lane).slots
        if len(slots) != len(kv):
            raise Corruption(f"{len(kv)} rows of keys came for {len(slots)} slots")
        block, offset = slots // BLOCK_SIZE, slots % BLOCK_SIZE
        pages, width = self.storage[:, layer], self.layout.head_dim
        heads = self.layout.kv_heads
        pages[:, 0].reshape(-1, heads, width, BLOCK_SIZE)[block, :, :, offset] = kv[:, 0]
        pages[:, 1].reshape(-1, heads, BLOCK_SIZE, width)[block, :, offset] = kv[:, 1]
        started: npt.NDArray[np.int32] = block[offset == 0]
        return started

    def end(self, lane: int) -> F32:
        """The result of what ``begin`` started, flat.

        ``[T, heads * head_dim]``; or for every part of the plan m ``[t, heads]``, l ``[t, heads]`` and acc
        ``[t, heads, head_dim]``, one after the other.
        """
        plan, state = self._plan(lane), self._under_way.pop(lane)
        if plan.parts.size:
            found = [
                part if part is not None else self._part(state, plan, r, s)
                for part, (r, s) in zip(state.parts, plan.parts.tolist(), strict=True)
            ]
            return np.concatenate([array.reshape(-1) for part in found for array in part])
        rows, heads, width = state.query.shape
        out = np.empty((rows, heads * width), np.float32)
        if rows:
            self._ops.attention_end(*self._arguments(state, plan), state.m, state.l, state.acc, out)
        return out

    def _plan(self, lane: int) -> Plan:
        try:
            return self._plans[lane]
        except KeyError:
            raise Corruption(f"rows came for lane {lane}, which has no plan") from None

    def _arguments(self, state: _UnderWay, plan: Plan) -> tuple[Any, ...]:
        arrays = (plan.tables, plan.query_start, plan.context_len)
        return (state.query, self.storage, state.layer, *arrays, self._scale)

    def _part(self, state: _UnderWay, plan: Plan, r: int, segment: int) -> tuple[F32, F32, F32]:
        """One segment of one request, not normalised."""
        begin, end = int(plan.query_start[r]), int(plan.query_start[r + 1])
        rows = np.ascontiguousarray(state.query[begin:end])
        m = np.empty((end - begin, rows.shape[1], 1), np.float32)
        l, acc = np.empty_like(m), np.empty((*m.shape, rows.shape[2]), np.float32)
        start = np.array([0, end - begin], np.int32)
        where = (np.ascontiguousarray(plan.tables[r : r + 1]), start, np.ascontiguousarray(plan.context_len[r : r + 1]))
        self._ops.attention_segments(rows, self.storage, state.layer, *where, self._scale, segment, m, l, acc)
        return m, l, acc


class _UnderWay:
    """The state of a lane between ``begin`` and ``end``."""

    __slots__ = ("acc", "l", "layer", "m", "parts", "query")

    def __init__(self, layer: int, query: F32) -> None:
        self.layer = layer
        self.query = query
        self.m: F32
        self.l: F32
        self.acc: F32
        self.parts: list[tuple[F32, F32, F32] | None] = []


def _old(plan: Plan, r: int, segment: int) -> bool:
    """Whether a segment holds none of the request's own rows."""
    rows = int(plan.query_start[r + 1]) - int(plan.query_start[r])
    return (segment + 1) * SEGMENT <= int(plan.context_len[r]) - rows
