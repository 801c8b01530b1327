"""Minimum cuts: Dinic's algorithm on integer capacities."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["INFINITE", "Network"]

V = TypeVar("V", bound=Hashable)

INFINITE = 1 << 60
"""A capacity that no cut of finite weight contains."""


class Network(Generic[V]):
    """A directed graph with capacities, and the minimum cut between two of its nodes."""

    def __init__(self) -> None:
        self._number: dict[V, int] = {}
        self._arcs: list[list[int]] = []  # of each node, indices into the three below
        self._head: list[int] = []
        self._left: list[int] = []

    def add(self, tail: V, head: V, capacity: int) -> None:
        """An arc; arc ``i ^ 1`` is the way back of arc ``i``."""
        a, b = self._index(tail), self._index(head)
        for origin, target, amount in ((a, b, capacity), (b, a, 0)):
            self._arcs[origin].append(len(self._head))
            self._head.append(target)
            self._left.append(amount)

    def cut(self, source: V, sink: V) -> tuple[int, set[V]]:
        """Weight of the minimum cut, and the smallest set of nodes on the source's side of one.

        Can be called once: it uses the capacities up.
        """
        s, t = self._index(source), self._index(sink)
        weight = 0
        while (level := self._levels(s))[t] >= 0:
            at = [0] * len(self._arcs)
            while pushed := self._push(s, t, level, at):
                weight += pushed
        names = list(self._number)
        return weight, {names[i] for i, depth in enumerate(level) if depth >= 0}

    def _index(self, node: V) -> int:
        if node not in self._number:
            self._number[node] = len(self._arcs)
            self._arcs.append([])
        return self._number[node]

    def _levels(self, source: int) -> list[int]:
        level = [-1] * len(self._arcs)
        level[source] = 0
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for arc in self._arcs[node]:
                if self._left[arc] and level[self._head[arc]] < 0:
                    level[self._head[arc]] = level[node] + 1
                    queue.append(self._head[arc])
        return level

    def _push(self, source: int, sink: int, level: list[int], at: list[int]) -> int:
        """Send what fits along one path of increasing level; 0 if there is none left."""
        path: list[int] = []
        node = source
        while node != sink:
            while at[node] < len(self._arcs[node]):
                arc = self._arcs[node][at[node]]
                if self._left[arc] and level[self._head[arc]] == level[node] + 1:
                    break
                at[node] += 1
            else:
                if not path:
                    return 0
                arc = path.pop()  # a dead end: one step back
                node = self._head[arc ^ 1]
                at[node] += 1
                continue
            path.append(arc)
            node = self._head[arc]
        amount = min(self._left[arc] for arc in path)
        for arc in path:
            self._left[arc] -= amount
            self._left[arc ^ 1] += amount
        return amount
