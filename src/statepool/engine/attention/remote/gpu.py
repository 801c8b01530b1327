"""The model on a GPU, its KV and attentions on the machine around it: contexts beyond the GPU's memory.

Queries, keys and values of a step come to the host together, since copies are what is slow here; everything behind that
is ``RemoteRunner``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from statepool.engine.attention.remote.here import Here
from statepool.engine.attention.remote.protocol import Plan
from statepool.engine.attention.remote.runner import Lane, Offload, RemoteRunner
from statepool.engine.config import Quant
from statepool.engine.gpu import OnDevice
from statepool.engine.loader import Checkpoint
from statepool.engine.models.decoder import DecoderConfig
from statepool.engine.ops.device import DeviceOps
from statepool.kv import KVLayout
from statepool.kv.layout import BLOCK_SIZE

__all__ = ["GpuRemoteRunner"]


class GpuRemoteRunner(RemoteRunner, OnDevice):
    """A ``RemoteRunner`` whose slices run on a torch device. Arguments as for it, and as for ``GpuRunner``.

    Raises:
        InvalidConfig: the device is not there.
    """

    def __init__(
        self,
        decoder: DecoderConfig,
        checkpoint: Checkpoint,
        quant: Quant,
        layout: KVLayout,
        blocks: int,
        max_len: int,
        offload: Offload,
        identity: str,
        device: str = "cuda",
        wanted: Mapping[str, str] | None = None,
    ) -> None:
        ops = self._use(device, wanted)
        super().__init__(
            ops, decoder, checkpoint, quant, layout, blocks, max_len, offload, f"{identity}/{self.arithmetic}"
        )
        self._cos, self._sin = self._place(self._cos), self._place(self._sin)

    backend = "cuda"

    def _stay(self, layout: KVLayout) -> Here:
        return _HereOnDevice(self._ops, layout, self._layout.kv_heads, self._blocks)

    def _embed(self, tokens: Any) -> Any:
        x: Any = self._empty(len(tokens), self.decoder.hidden_size)
        self._ops.embed(self._embedding, self._place(tokens), x)
        return x

    def _resume(self, lane: Lane, layer: int, mixed: Any) -> None:
        self._layers[layer].after_attention(lane.x, self._place(mixed))

    def _send(self, lane: Lane, layer: int) -> None:
        d, rows = self.decoder, len(lane.x)
        pages = -(-rows // BLOCK_SIZE)
        dtype = torch.float32 if self._layout.dtype == "fp32" else torch.bfloat16
        staging = torch.zeros(pages, 1, 2, d.kv_heads, BLOCK_SIZE * d.head_dim, dtype=dtype, device=self._device)
        query: Any = self._empty(rows, d.heads * d.head_dim)
        slots = torch.arange(rows, device=self._device)
        positions = self._place(lane.batch.positions)
        self._layers[layer].before_attention(lane.x, self._cos, self._sin, positions, slots, staging, 0, query)
        keys = staging[:, 0, 0].unflatten(-1, (d.head_dim, BLOCK_SIZE)).permute(0, 3, 1, 2)
        values = staging[:, 0, 1].unflatten(-1, (BLOCK_SIZE, d.head_dim)).transpose(1, 2)
        both = torch.stack([each.flatten(0, 1)[:rows] for each in (keys, values)], dim=1).contiguous()
        bits = both.view(torch.uint16) if dtype == torch.bfloat16 else both
        query = query.view(rows, d.heads, d.head_dim)
        queries, keys_values = query.cpu().numpy(), np.ascontiguousarray(bits.cpu().numpy())
        self._send_queries(lane, layer, queries)
        if self._here is not None:  # behind the copies, which would wait for it
            self._here.attend(lane.number, layer, query, both)
        self._send_keys(lane, layer, keys_values)


class _HereOnDevice(Here):
    """Its blocks are on the device, which attends for them as soon as the rows are there."""

    def __init__(self, ops: DeviceOps, layout: KVLayout, kv_heads: int, blocks: int) -> None:
        self._ops, self._layout = ops, layout
        self._heads, self._of = layout.kv_heads, kv_heads
        dtype = torch.float32 if layout.dtype == "fp32" else torch.bfloat16
        self._storage = torch.zeros(blocks, *layout.block_shape, dtype=dtype, device=ops.device)
        self._plans: dict[int, Any] = {}
        self._results: dict[int, torch.Tensor] = {}

    def plan(self, plan: Plan) -> None:
        names = ("tables", "query_start", "context_len", "slots")
        self._plans[plan.lane] = tuple(self._ops.place(np.array(getattr(plan, name))) for name in names)

    def attend(self, lane: int, layer: int, query: Any, kv: Any) -> None:
        *where, slots = self._plans[lane]
        block, offset, width = slots // BLOCK_SIZE, slots % BLOCK_SIZE, self._layout.head_dim
        pages = self._storage[:, layer]
        pages[:, 0].unflatten(-1, (width, BLOCK_SIZE))[block, :, :, offset] = kv[:, 0, : self._heads]
        pages[:, 1].unflatten(-1, (BLOCK_SIZE, width))[block, :, offset] = kv[:, 1, : self._heads]
        mine = query[:, : query.shape[1] * self._heads // self._of].contiguous()
        out = self._results[lane] = torch.empty(len(mine), mine[0].numel(), dtype=torch.float32, device=mine.device)
        self._ops.attention(mine, self._storage, layer, *where, width**-0.5, out)

    def put(self, lane: int, mixed: Any) -> None:
        done = self._results.pop(lane).cpu().numpy().reshape(len(mixed), self._heads, -1)
        mixed.reshape(len(mixed), self._of, -1)[:, : self._heads] = done

    def read(self, blocks: list[int]) -> Any:
        part = self._storage[blocks].cpu()
        return (part.view(torch.uint16) if part.dtype == torch.bfloat16 else part).numpy()

    def write(self, blocks: list[int], data: Any) -> None:
        self._storage[blocks] = self._ops.place(np.ascontiguousarray(data[:, :, :, : self._heads]))
