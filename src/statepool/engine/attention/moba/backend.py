"""Block attention inside the engine, prompts and answers alike.

A token's attention depends on the keys and values up to it and on nothing else: block means are sums in order of
position, and each query vector is computed alone. So a decoded token has the bits it would have in a prompt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidConfig
from statepool.engine.attention.moba.config import MobaConfig
from statepool.engine.batch import Batch
from statepool.kv.layout import BLOCK_SIZE
from statepool.native import kernels

F32 = npt.NDArray[np.float32]


class MobaAttention:
    """Backend for layers that read ``topk`` blocks per query.

    Args:
        storage: the KV pool's array.
        head_dim: of the model.
        config: settings.

    Raises:
        InvalidConfig: blocks are not whole pages of the pool.
    """

    name = "moba"

    def __init__(self, storage: npt.NDArray[Any], head_dim: int, config: MobaConfig) -> None:
        if config.block % BLOCK_SIZE:
            raise InvalidConfig(f"block must be a multiple of {BLOCK_SIZE} in the engine", param="attention")
        self._storage = storage
        self._head_dim = head_dim
        self._config = config
        self._scale = head_dim**-0.5
        self.rows_read = 0
        """Means, keys and values that queries have read so far, each ``head_dim`` numbers."""

    def attend(self, layer: int, query: F32, batch: Batch, out: F32) -> None:
        """See ``Backend.attend``."""
        assert kernels is not None
        self.rows_read += kernels.moba(
            query.reshape(query.shape[0], -1, self._head_dim),
            self._storage,
            layer,
            batch.block_tables,
            batch.query_start,
            batch.context_len,
            [self._means(layer, batch, r) for r in range(len(batch.contexts))],
            self._config.block,
            self._config.topk,
            self._scale,
            out,
        )

    def _means(self, layer: int, batch: Batch, r: int) -> F32:
        """Mean keys ``[kv_heads][blocks][head_dim]`` of all blocks that end before the last token of sequence ``r``."""
        assert kernels is not None
        length, count = int(batch.context_len[r]), int(batch.query_start[r + 1] - batch.query_start[r])
        shape = (self._storage.shape[3], 0, self._head_dim)
        known: F32 = batch.contexts[r].kept.get(layer, np.empty(shape, np.float32))
        wanted, block = (length - 1) // self._config.block, self._config.block
        if wanted <= known.shape[1]:
            return np.ascontiguousarray(known[:, :wanted])
        pages = batch.block_tables[r, known.shape[1] * block // BLOCK_SIZE : wanted * block // BLOCK_SIZE]
        new = np.empty((shape[0], wanted - known.shape[1], shape[2]), np.float32)
        kernels.moba_means(self._storage, layer, np.ascontiguousarray(pages), block, new)
        means = np.concatenate([known, new], axis=1)
        # This step's tokens may be drafts that do not hold: only blocks that end before them are kept.
        settled = (length - count) // block
        batch.contexts[r].kept[layer] = np.ascontiguousarray(means[:, :settled])
        return means
