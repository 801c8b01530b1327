"""Runs the decoder on a torch device: weights and KV pool live there, and only logits rows come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from statepool.core.errors import InvalidConfig
from statepool.engine import cuda
from statepool.engine.batch import Batch
from statepool.engine.config import Quant
from statepool.engine.loader import Checkpoint
from statepool.engine.models.decoder import DecoderConfig
from statepool.engine.ops.device import DeviceOps
from statepool.engine.runner import F32, CopiedBlocks, DecoderRunner
from statepool.kv import KVLayout


class OnDevice(DecoderRunner):
    """The part of a runner on tensors that does not touch KV. ``_use`` comes before anything else."""

    def _use(self, device: str, wanted: Mapping[str, str] | None) -> DeviceOps:
        """Choose the device and its ops.

        Raises:
            InvalidConfig: the device is not there.
        """
        self._device = torch.device(device)
        if self._device.type == "cuda" and (reason := cuda.missing()) is not None:
            raise InvalidConfig(f"backend 'cuda' is not available: {reason}", param="backend")
        ops = DeviceOps(self._device, wanted)
        self.arithmetic = ops.arithmetic
        self._place = ops.place
        return ops

    def load(self, changed: set[str] | None = None) -> None:
        """See ``Runner.load``."""
        super().load(changed)
        self._embedding, self._norm = self._place(self._embedding), self._place(self._norm)

    def logits(self, hidden: Any) -> F32:
        """See ``Runner.logits``."""
        out = self._empty(hidden.shape[0], self.decoder.vocab_size)
        self._ops.head(hidden, self._norm, self.decoder.eps, self._head, out)
        return out.cpu().numpy()

    def normed(self, hidden: Any) -> F32:
        """See ``Runner.normed``."""
        # A copy, since a slice of rows may start at an address that makes Triton compile another kernel.
        rows = hidden.clone()
        self._ops.rms_norm(hidden.clone(), self._norm, self.decoder.eps, rows)
        array: F32 = rows.cpu().numpy()
        return array

    def _empty(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, dtype=torch.float32, device=self._device)


class GpuRunner(CopiedBlocks, OnDevice):
    """A ``Runner`` on tensors. Its blocks have the bytes and the layout of the CPU path's.

    Args:
        decoder, checkpoint, quant, max_len: as for ``DecoderRunner``.
        layout: of the KV pool.
        blocks: how many to allocate, on the device.
        device: ``cuda``, ``cuda:1``, or ``cpu`` (for tests).
        wanted: implementations to choose by hand, see ``ops.device.choose``.

    Raises:
        InvalidConfig: the device is not there, or cannot hold the pool.
    """

    def __init__(
        self,
        decoder: DecoderConfig,
        checkpoint: Checkpoint,
        quant: Quant,
        layout: KVLayout,
        blocks: int,
        max_len: int,
        device: str = "cuda",
        wanted: Mapping[str, str] | None = None,
    ) -> None:
        ops = self._use(device, wanted)
        dtype = torch.bfloat16 if layout.dtype == "bf16" else torch.float32
        try:
            storage: Any = torch.zeros(blocks, *layout.block_shape, dtype=dtype, device=self._device)
        except torch.cuda.OutOfMemoryError:
            raise InvalidConfig(
                f"kv_bytes: {device} has no room for {blocks} blocks of {layout.block_bytes} bytes", param="kv_bytes"
            ) from None
        super().__init__(ops, decoder, checkpoint, quant, storage, max_len)
        self._cos, self._sin = ops.place(self._cos), ops.place(self._sin)

    def forward(self, batch: Batch) -> Any:
        """See ``Runner.forward``; the hidden states stay on the device."""
        d, rows = self.decoder, batch.tokens.size
        placed = replace(batch, **{name: self._place(array) for name, array in batch.arrays.items()})
        x: Any = self._empty(rows, d.hidden_size)
        query: Any = self._empty(rows, d.heads * d.head_dim)
        mixed: Any = torch.empty_like(query)
        self._ops.embed(self._embedding, placed.tokens, x)
        for i, (layer, backend) in enumerate(zip(self._layers, self.backends, strict=True)):
            layer.before_attention(x, self._cos, self._sin, placed.positions, placed.slots, self.storage, i, query)
            backend.attend(i, query, placed, mixed)
            layer.after_attention(x, mixed)
        return x

    def read_blocks(self, blocks: list[int]) -> npt.NDArray[Any]:
        """See ``Runner.read_blocks``."""
        storage: Any = self.storage
        copy = storage[blocks].cpu()
        array: npt.NDArray[Any] = (copy.view(torch.uint16) if copy.dtype == torch.bfloat16 else copy).numpy()
        return array

    def write_blocks(self, blocks: list[int], data: npt.NDArray[Any]) -> None:
        """See ``Runner.write_blocks``."""
        self.storage[blocks] = self._place(data)
