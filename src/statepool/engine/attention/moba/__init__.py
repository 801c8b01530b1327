"""MoBA, mixture of block attention: every query reads its own block and the past blocks that its gate prefers.

``MobaConfig`` and the engine's backend need no torch; ``statepool.train.moba`` is the same attention with gradients.
"""

from statepool.engine.attention.moba.backend import MobaAttention
from statepool.engine.attention.moba.config import MobaConfig

__all__ = ["MobaAttention", "MobaConfig"]
