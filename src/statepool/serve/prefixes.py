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

    def put(self, key: K, nodes: int) -> None:
        """Just ``nodes``, as bits, hold ``key`` from now on."""
        self._holders[key] = nodes

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
                if depth:
                    held[self._members(alive & ~still)] = depth
                alive = still
                if not alive:
                    return held
        held[self._members(alive)] = len(keys)
        return held

    def _members(self, nodes: int) -> list[int] | np.ndarray:
        """The numbers of the set bits."""
        if nodes.bit_count() > 8:
            packed = np.frombuffer(nodes.to_bytes(-(-self._nodes // 8), "little"), dtype=np.uint8)
            return np.flatnonzero(np.unpackbits(packed, bitorder="little"))
        found = []
        while nodes:
            lowest = nodes & -nodes
            found.append(lowest.bit_length() - 1)
            nodes ^= lowest
        return found
