"""An engine whose KV is larger than its memory: ``--kv-budget``.

The pool's newest blocks are in memory and the others in a file (``kv.tiers``). Exact attention reads a context that is
not all in memory window by window; block attention reads the blocks that its gate chose; the wave index keeps its
tables in memory and its clusters in a file of its own, with the recently read ones in memory. Bits do not depend on
what is where.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidConfig
from statepool.engine.attention.moba.config import MobaConfig
from statepool.engine.attention.spec import AttentionSpec
from statepool.engine.attention.wave.buffer import WaveBuffer, table_bytes
from statepool.engine.attention.wave.config import WaveConfig
from statepool.engine.batch import Batch
from statepool.engine.config import EngineConfig
from statepool.engine.runner import CopiedBlocks, DecoderRunner
from statepool.kv.layout import BLOCK_SIZE, KVLayout
from statepool.kv.tiers import AREA_BLOCKS, TieredBlocks
from statepool.native import kernels

F32 = npt.NDArray[np.float32]

FOLDED = 1024
"""Tokens that exact attention folds at a time (see native/attention.h), and so a window of the file."""


@dataclass(frozen=True, slots=True)
class Split:
    """What a budget of memory is spent on, in bytes but for ``frames``."""

    frames: int
    """Blocks of the pool in memory."""
    areas: int
    """What blocks of the file are read into."""
    tables: int = 0
    """For a pool full of contexts: centroids, mean values and positions of the wave index, or mean keys of blocks."""
    clusters: int = 0
    """Recently read clusters."""

    @classmethod
    def of(cls, config: EngineConfig, layout: KVLayout, blocks: int, sparse: WaveConfig | MobaConfig | None) -> Split:
        """Divide ``config.kv_budget``.

        Raises:
            InvalidConfig: it is too small; the message says how much is needed.
        """
        assert config.kv_budget is not None
        # Each sequence may end in the middle of a block.
        least = min(-(-config.max_batched_tokens // BLOCK_SIZE) + 2 * config.max_seqs, blocks)
        areas = 2 * min(AREA_BLOCKS, blocks) * layout.block_bytes // layout.layers
        tables = round(_table_bytes(layout, sparse) * blocks * BLOCK_SIZE)
        wave = isinstance(sparse, WaveConfig)
        # Clusters: less than a fiftieth of the KV would hardly hold what one step reads.
        needed = least * layout.block_bytes + areas + tables + (blocks * layout.block_bytes // 50 if wave else 0)
        if config.kv_budget < needed:
            raise InvalidConfig(
                f"kv_budget {config.kv_budget} is too small for kv_bytes {config.kv_bytes}: {needed} bytes are needed; "
                "raise it, or lower kv_bytes, max_batched_tokens or max_seqs",
                param="kv_budget",
            )
        spare = config.kv_budget - needed
        if wave:
            spare = min(spare, config.kv_budget // 4 - least * layout.block_bytes)
        frames = min(least + max(spare, 0) // layout.block_bytes, blocks)
        spent = frames * layout.block_bytes + areas
        return cls(frames, areas, tables, config.kv_budget - spent - tables if wave else 0)


def _table_bytes(layout: KVLayout, sparse: WaveConfig | MobaConfig | None) -> float:
    """Memory per token of a context, over all layers, for what a sparse attention knows of it."""
    if isinstance(sparse, WaveConfig):
        return table_bytes(layout, sparse)
    # A mean is float32, whatever the keys are.
    return 0 if sparse is None else layout.layers * layout.kv_heads * layout.head_dim * 4 / sparse.block


class TieredRunner(CopiedBlocks, DecoderRunner):
    """The CPU path over blocks that are partly in a file. See ``DecoderRunner``."""

    def __init__(self, ops: Any, tiers: TieredBlocks, *rest: Any) -> None:
        decoder, checkpoint, quant, max_len = rest
        super().__init__(ops, decoder, checkpoint, quant, tiers.storage, max_len)
        self.blocks: TieredBlocks = tiers
        self.backends = [StreamedAttention(ops, tiers, decoder.head_dim)] * decoder.layers

    def forward(self, batch: Batch) -> F32:
        """See ``Runner.forward``."""
        written = batch.slots // BLOCK_SIZE
        starts = batch.query_start[:-1]
        partial = written[starts][batch.positions[starts] % BLOCK_SIZE > 0]
        frames = self.blocks.enter(written.tolist(), partial.tolist())
        slots = frames[written].astype(np.int64) * BLOCK_SIZE + batch.slots % BLOCK_SIZE
        return super().forward(replace(batch, slots=slots))

    def read_blocks(self, blocks: list[int]) -> npt.NDArray[Any]:
        """See ``Runner.read_blocks``."""
        return self.blocks.read(blocks)

    def write_blocks(self, blocks: list[int], data: npt.NDArray[Any]) -> None:
        """See ``Runner.write_blocks``."""
        self.blocks.write(blocks, data)

    def copy_block(self, source: int, target: int) -> None:
        """See ``Runner.copy_block``."""
        self.blocks.write([target], self.blocks.read([source]))


class StreamedAttention:
    """Exact attention over contexts that need not be in memory, in the order and with the bits of ``FullAttention``."""

    name = "full"

    def __init__(self, ops: Any, tiers: TieredBlocks, head_dim: int) -> None:
        self._ops = ops
        self._tiers = tiers
        self._head_dim = head_dim
        self._scale = head_dim**-0.5

    def attend(self, layer: int, query: F32, batch: Batch, out: F32) -> None:
        """See ``Backend.attend``."""
        for r, (begin, end) in enumerate(zip(batch.query_start, batch.query_start[1:], strict=False)):
            if begin == end:
                continue
            context = int(batch.context_len[r])
            blocks = batch.block_tables[r, : -(-context // BLOCK_SIZE)]
            rows = np.ascontiguousarray(query[begin:end]).reshape(end - begin, -1, self._head_dim)
            frames = self._tiers.in_memory(blocks)
            if frames is None:
                self._stream(layer, rows, blocks, context, out[begin:end])
            else:
                start, length = np.array([0, end - begin], np.int32), np.array([context], np.int32)
                storage = self._tiers.storage
                self._ops.attention(rows, storage, layer, frames[None], start, length, self._scale, out[begin:end])

    def _stream(self, layer: int, rows: F32, blocks: npt.NDArray[np.int32], context: int, out: F32) -> None:
        count, heads, width = rows.shape
        whole: list[F32] = []
        for i, (window, size) in enumerate(self._tiers.windows(layer, blocks, FOLDED // BLOCK_SIZE)):
            left = context - i * FOLDED
            seen = min(count, left)  # rows before these ended in an earlier window
            # The kernel asks for a table as long as the context, of which it reads this window's part.
            table = np.zeros((1, -(-left // BLOCK_SIZE)), np.int32)
            table[0, :size] = np.arange(size)
            part = [np.empty((seen, heads, 1), np.float32) for _ in range(2)]
            part.append(np.empty((seen, heads, 1, width), np.float32))
            start, length = np.array([0, seen], np.int32), np.array([left], np.int32)
            late = rows[count - seen :]
            self._ops.attention_segments(late, window, 0, table, start, length, self._scale, 0, *part)
            if whole:
                self._ops.fold_segments(*(a[count - seen :] for a in whole), *(a[:, :, 0] for a in part))
            else:
                whole = [a[:, :, 0] for a in part]
        self._ops.merge_segments(*(a[:, :, None] for a in whole), out)


def tiered_runner(
    config: EngineConfig, decoder: Any, checkpoint: Any, layout: KVLayout, blocks: int, max_len: int
) -> tuple[TieredRunner, str]:
    """The runner of an engine with ``config.kv_budget``, its attention installed, and its backend's name.

    Raises:
        InvalidConfig: the budget is too small, or this machine or these settings have no blocks in files.
    """
    spec = AttentionSpec.parse(config.attention)
    if kernels is None or config.backend not in ("auto", "native"):
        raise InvalidConfig("kv_budget needs the native backend", param="kv_budget")
    if config.threads is not None:
        kernels.set_threads(config.threads)
    split = Split.of(config, layout, blocks, spec.sparse)
    tiers = TieredBlocks(layout, blocks, split.frames, config.kv_folder)
    runner = TieredRunner(kernels, tiers, decoder, checkpoint, config.quant, max_len)
    buffer = None
    if isinstance(spec.sparse, WaveConfig):
        row = layout.head_dim * layout.numpy_dtype.itemsize
        buffer = WaveBuffer(row, split.clusters, config.kv_folder)
    runner.backends = spec.backends(runner, "native", split.tables, buffer, config.trace_selection) or runner.backends
    return runner, "native"
