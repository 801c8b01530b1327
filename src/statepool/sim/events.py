"""The clock of a simulation: what happens next, and nothing in between."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

__all__ = ["Events"]


class Events:
    """Actions in order of time; those of equal time in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the start."""
        self._planned: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Plan ``action(*arguments)`` for ``time``, or for now if that is past."""
        self._count += 1
        heappush(self._planned, (max(time, self.now), self._count, action, arguments))

    def run(self) -> None:
        """Let time pass until nothing is planned."""
        while self._planned:
            self.now, _, action, arguments = heappop(self._planned)
            action(*arguments)
