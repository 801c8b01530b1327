"""RetroInfer's wave index: attention that reads the clusters of keys it needs and estimates the others.

Usable alone, on arrays: ``WaveIndex.build(keys, values).decode(query)``. The engine's backend is in ``backend``.
"""

from statepool.engine.attention.wave.buffer import BufferCounts, WaveBuffer
from statepool.engine.attention.wave.config import WaveConfig
from statepool.engine.attention.wave.index import Cost, Decoded, WaveIndex
from statepool.engine.attention.wave.segment import Segment

__all__ = ["BufferCounts", "Cost", "Decoded", "Segment", "WaveBuffer", "WaveConfig", "WaveIndex"]
