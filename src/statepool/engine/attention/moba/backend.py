"""Block attention inside the engine, prompts and answers alike.

A token's attention depends on the keys and values up to it and on nothing else: block means are sums in order of
position, and a query vector folds its blocks in order of position. So a decoded token has the bits it would have in a
prompt, and they do not depend on which blocks are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidConfig
from statepool.engine.attention.moba.config import MobaConfig
from statepool.engine.batch import Batch
from statepool.kv.layout import BLOCK_SIZE
from statepool.kv.tiers import AREA_BLOCKS, Resident, TieredBlocks
from statepool.native import kernels

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


class MobaAttention:
    """Backend for layers that read ``topk`` blocks per query.

    Args:
        blocks: of the KV pool.
        head_dim: of the model.
        config: settings.

    Raises:
        InvalidConfig: blocks are not whole pages of the pool, or too large to be read from a file one by one.
    """

    name = "moba"

    def __init__(self, blocks: Resident | TieredBlocks, head_dim: int, config: MobaConfig) -> None:
        if config.block % BLOCK_SIZE:
            raise InvalidConfig(f"block must be a multiple of {BLOCK_SIZE} in the engine", param="attention")
        if isinstance(blocks, TieredBlocks) and config.block > AREA_BLOCKS * BLOCK_SIZE:
            raise InvalidConfig(
                f"block must be at most {AREA_BLOCKS * BLOCK_SIZE} with kv_budget, got {config.block}",
                param="attention",
            )
        self._blocks = blocks
        self._head_dim = head_dim
        self._config = config
        self._scale = head_dim**-0.5
        self.rows_read = 0
        """Means, keys and values that queries have read so far, each ``head_dim`` numbers."""

    def attend(self, layer: int, query: F32, batch: Batch, out: F32) -> None:
        """See ``Backend.attend``."""
        assert kernels is not None
        rows = query.reshape(len(query), -1, self._head_dim)
        block, slots = (
            self._config.block,
            min(self._config.topk, -(-int(batch.context_len.max()) // self._config.block)),
        )
        means = [self._means(layer, batch, r) for r in range(len(batch.contexts))]
        chosen = np.empty((*rows.shape[:2], slots), np.int32)
        self.rows_read += kernels.moba_choose(rows, batch.query_start, batch.context_len, means, block, chosen)
        # One part each, as merge_segments wants them.
        m, l = (np.empty((*rows.shape[:2], 1), np.float32) for _ in range(2))
        acc = np.empty((*rows.shape[:2], 1, self._head_dim), np.float32)
        state = m[:, :, 0], l[:, :, 0], acc[:, :, 0]
        frames = self._blocks.in_memory(batch.block_tables)
        if frames is not None:
            where = self._blocks.storage, layer, frames, batch.query_start, batch.context_len, chosen, block
            last = int(batch.context_len.max()) // block + 1
            self.rows_read += kernels.moba_attend(rows, *where, 0, last, self._scale, *state)
        else:
            for r, (begin, end) in enumerate(zip(batch.query_start, batch.query_start[1:], strict=False)):
                start, length = np.array([0, end - begin], np.int32), batch.context_len[r : r + 1]
                mine, part = chosen[begin:end], [a[begin:end] for a in state]
                pages = batch.block_tables[r, : -(-int(length[0]) // BLOCK_SIZE)]
                for window, table, first, last in self._windows(layer, pages, mine):
                    where = window, 0, table, start, length, mine, block
                    self.rows_read += kernels.moba_attend(rows[begin:end], *where, first, last, self._scale, *part)
        kernels.merge_segments(m, l, acc, out)

    def _windows(self, layer: int, pages: I32, chosen: I32) -> Iterator[tuple[npt.NDArray[Any], I32, int, int]]:
        """The chosen blocks of one sequence, some at a time: (array of one layer, table, first block, last + 1)."""
        assert isinstance(self._blocks, TieredBlocks)
        each = self._config.block // BLOCK_SIZE
        at_once = AREA_BLOCKS // each
        wanted = [int(b) for b in np.unique(chosen) if b >= 0]
        places = [np.arange(b * each, min((b + 1) * each, len(pages))) for b in wanted]
        read = self._blocks.windows(layer, pages[np.concatenate(places)], at_once * each) if places else iter(())
        for i, (window, size) in enumerate(read):
            mine = slice(i * at_once, (i + 1) * at_once)
            # Blocks between the wanted ones are read by nobody: their pages may be any.
            table = np.zeros((1, len(pages)), np.int32)
            table[0, np.concatenate(places[mine])] = np.arange(size)
            yield window, table, wanted[mine][0], wanted[mine][-1] + 1

    def _means(self, layer: int, batch: Batch, r: int) -> F32:
        """Mean keys ``[kv_heads][blocks][head_dim]`` of all blocks that end before the last token of sequence ``r``."""
        assert kernels is not None
        length, count = int(batch.context_len[r]), int(batch.query_start[r + 1] - batch.query_start[r])
        shape = (self._blocks.storage.shape[3], 0, self._head_dim)
        known: F32 = batch.contexts[r].kept.get(layer, np.empty(shape, np.float32))
        wanted, block = (length - 1) // self._config.block, self._config.block
        if wanted <= known.shape[1]:
            return np.ascontiguousarray(known[:, :wanted])
        each = block // BLOCK_SIZE
        at_once, parts = max(AREA_BLOCKS // each, 1), [known]
        for at in range(known.shape[1], wanted, at_once):
            end = min(at + at_once, wanted)
            storage, place, pages = self._blocks.place(layer, batch.block_tables[r, at * each : end * each])
            parts.append(np.empty((shape[0], end - at, shape[2]), np.float32))
            kernels.moba_means(storage, place, np.ascontiguousarray(pages), block, parts[-1])
        means = np.concatenate(parts, axis=1)
        # This step's tokens may be drafts that do not hold: only blocks that end before them are kept.
        settled = (length - count) // block
        batch.contexts[r].kept[layer] = np.ascontiguousarray(means[:, :settled])
        return means
