"""Attention backends: how queries meet the KV blocks. The middle of every layer, and replaceable."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from statepool.engine.batch import Batch

F32 = npt.NDArray[np.float32]


class Backend(Protocol):
    """One way to compute attention for one batch. Prefill and decode differ only in rows per sequence."""

    name: str

    def attend(self, layer: int, query: F32, batch: Batch, out: F32) -> None:
        """Write softmax(q K^T) V of every row.

        Args:
            layer: whose keys and values.
            query: float32 ``[T][heads * head_dim]``, rotated, not scaled.
            batch: keys and values of its own tokens are already in the pool.
            out: float32, as ``query``.
        """
        ...
