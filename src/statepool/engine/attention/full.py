"""Exact attention over the paged pool."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.engine.batch import Batch

F32 = npt.NDArray[np.float32]


class FullAttention:
    """Every key of every position up to the query's own, in pages of 16, in order."""

    name = "full"

    def __init__(self, ops: Any, storage: npt.NDArray[Any], head_dim: int) -> None:
        self._ops = ops
        self._storage = storage
        self._head_dim = head_dim
        self._scale = head_dim**-0.5

    def attend(self, layer: int, query: F32, batch: Batch, out: F32) -> None:
        """See ``Backend.attend``."""
        self._ops.attention(
            query.reshape(query.shape[0], -1, self._head_dim),
            self._storage,
            layer,
            batch.block_tables,
            batch.query_start,
            batch.context_len,
            self._scale,
            out,
        )
