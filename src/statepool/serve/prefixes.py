"""Which node holds which block: the longest prefix of a prompt on every node at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.native import kernels

__all__ = ["PrefixIndex", "PrefixTable"]

K = TypeVar("K", bound=Hashable)


class PrefixIndex(Generic[K]):
    """Block key to the set of nodes that hold it, a bit per node."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._holders: dict[K, int] = {}

    def add(self, node: int, key: K) -> None:
        """``node`` holds ``key`` from now on."""
        self._holders[key] = self._holders.get(key, 0) | 1 << node

    def __len__(self) -> int:
        return len(self._holders)

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


class PrefixTable:
    """``PrefixIndex`` for keys of 64 bits, in bulk: 12 bytes a key where the native kernels are, else the twin.

    Args:
        nodes: how many there are.
        expected: different keys to make room for at once.
    """

    def __init__(self, nodes: int, expected: int = 0) -> None:
        self._nodes = nodes
        self._native: Any = None if kernels is None else kernels.PrefixTable(nodes, expected)
        self._twin: PrefixIndex[int] = PrefixIndex(nodes)

    def add(self, node: int, keys: np.ndarray) -> None:
        """``node`` holds ``keys``, uint64 [n], from now on.

        Raises:
            InvalidRequest: there is no such node.
        """
        self._check(node)
        if self._native is not None:
            self._native.add(node, keys)
            return
        for key in keys.tolist():
            self._twin.add(node, key)

    def __len__(self) -> int:
        return len(self._twin if self._native is None else self._native)

    def drop(self, node: int, keys: np.ndarray) -> None:
        """``node`` no longer holds ``keys``, uint64 [n]; those it did not hold are passed over.

        Raises:
            InvalidRequest: there is no such node.
        """
        self._check(node)
        if self._native is not None:
            self._native.drop(node, keys)
            return
        for key in keys.tolist():
            if self._twin.holders(key) >> node & 1:
                self._twin.drop(node, key)

    def _check(self, node: int) -> None:
        if not 0 <= node < self._nodes:
            raise InvalidRequest(f"node is {node}; it must be from 0 to {self._nodes - 1}", param="node")

    def match(self, keys: np.ndarray) -> np.ndarray:
        """How many leading ``keys``, uint64 [n], each node holds: int64 [nodes]."""
        if self._native is not None:
            found: np.ndarray = self._native.match(keys)
            return found
        return self._twin.match(keys.tolist())
