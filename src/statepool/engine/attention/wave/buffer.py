"""The wave buffer: clusters of all segments in a file, the recently read ones in memory (RetroInfer 4.3).

What is in memory is decided by a thread of its own after each step, least recently used clusters first to go, and never
changes an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from statepool.engine.attention.wave.config import WaveConfig
from statepool.engine.attention.wave.segment import LANES, Segment
from statepool.kv.layout import KVLayout
from statepool.kv.tiers import TierFailure, open_scratch
from statepool.native import kernels


@dataclass(frozen=True, slots=True)
class BufferCounts:
    """Clusters found in memory and not, bytes and reads from the file, clusters that left memory; since the start."""

    hits: int
    misses: int
    bytes_read: int
    reads: int
    evicted: int

    @property
    def hit_ratio(self) -> float:
        """Share of the clusters read that were in memory; 0 before the first."""
        return self.hits / max(self.hits + self.misses, 1)


class WaveBuffer:
    """Clusters in a scratch file under a limit of memory.

    Args:
        row_bytes: of one key.
        memory: most bytes of clusters in memory.
        folder: where the file lies; see ``kv.tiers.open_scratch``.
        background: whether clusters find their place in memory while the caller goes on.

    Raises:
        InvalidConfig: the folder cannot be written.
    """

    def __init__(self, row_bytes: int, memory: int, folder: str | None = None, background: bool = True) -> None:
        assert kernels is not None
        page = 2 * 8 * row_bytes
        self.native = kernels.ClusterCache(open_scratch(folder), row_bytes, memory // page, background)

    def store(self, segment: Segment) -> Segment:
        """The segment with its clusters in the file; tables and pinned tokens stay in memory.

        Raises:
            TierFailure: the file could not be written.
        """
        assert kernels is not None
        try:
            stored = self.native.store(segment.rows, segment.offsets)
        except kernels.TierFailure as error:
            raise TierFailure(str(error)) from None
        pinned = np.ascontiguousarray(segment.rows[:, : 2 * segment.pinned])
        return replace(segment, rows=pinned, order=segment.order[:, :0].copy(), stored=stored)

    @property
    def counts(self) -> BufferCounts:
        """See ``BufferCounts``."""
        return BufferCounts(*self.native.counts)


def table_bytes(layout: KVLayout, config: WaveConfig) -> float:
    """Memory per token of a context, over all layers, that its segments keep while their clusters are in a file."""
    assert kernels is not None
    row = layout.head_dim * layout.numpy_dtype.itemsize
    cluster = (3 if config.estimator == "diag2" else 2) * row + 5 * 4 + kernels.SLOT_BYTES
    smallest = config.update_segment
    padded = -(-config.clusters(0, smallest) // LANES) * LANES
    return float(layout.layers * layout.kv_heads * cluster * padded / smallest)
