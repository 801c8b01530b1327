"""Which node holds which block: the longest prefix of a prompt on every node at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

__all__ = ["PrefixIndex"]

K = TypeVar("K", bound=Hashable)


class PrefixIndex(Generic[K]):
    """Block key to the set of nodes that hold it, a bit per node."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._holders: dict[K, int] = {}

    def add(self, node: int, key: K) -> None:
        """``node`` holds ``key`` from now on."""
        self._holders[key] = self._holders.get(key, 0) | 1 << node

    def drop(self, node: int, key: K) -> None:
        """``node`` no longer holds ``key``."""
        left = self._holders[key] & ~(1 << node)
        if left:
            self._holders[key] = left
        else:
            del self._holders[key]

    def holders(self, key: K) -> int:
        """The nodes that hold ``key``, as bits."""
        return self._holders.get(key, 0)

    def match(self, keys: Sequence[K]) -> np.ndarray:
        """How many leading ``keys`` each node holds: int64 [nodes]."""
        held = np.zeros(self._nodes, dtype=np.int64)
        alive = (1 << self._nodes) - 1
        for depth, key in enumerate(keys):
            still = alive & self._holders.get(key, 0)
            if still != alive:
                _mark(held, alive & ~still, depth)
                alive = still
                if not alive:
                    return held
        _mark(held, alive, len(keys))
        return held


def _mark(held: np.ndarray, nodes: int, depth: int) -> None:
    if depth == 0:
        return
    while nodes:
        lowest = nodes & -nodes
        held[lowest.bit_length() - 1] = depth
        nodes ^= lowest
