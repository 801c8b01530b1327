"""What holds the threads of an asynchronous search together, in simulated time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .world import Candidate, Pool, Search

__all__ = ["Actor", "Together"]

ROOM = 32
"""Candidates that change hands at once, as in the engine."""


@dataclass(slots=True)
class Actor:
    """A thread that owns candidates."""

    pool: Pool
    clock: float = 0.0
    since: int = 0
    wants_since: float = math.inf
    board: list[tuple[float, list[float]]] = field(default_factory=list)
    arriving: list[tuple[float, list[Candidate]]] = field(default_factory=list)


class Together:
    """The threshold, the boards and the exchange, in simulated time."""

    def __init__(self, search: Search, actors: int) -> None:
        self.search, self.costs = search, search.costs
        self.actors = [Actor(Pool(search.width)) for _ in range(actors)]
        self.lowered: list[tuple[float, int, float]] = []
        """(when, by whom, to what), falling."""
        self.step = math.ceil(search.width / ROOM)

    def limit(self, now: float, self_: int) -> float:
        """The threshold as actor ``self_`` sees it."""
        for when, who, value in reversed(self.lowered):
            if who == self_ or when + self.costs.one_way <= now:
                return value
        return math.inf

    def share(self, now: float, self_: int) -> float:
        """Show samples, lower the threshold; how long that takes."""
        me, width = self.actors[self_], self.search.width
        me.board.append((now, [item[0] for item in me.pool.items[self.step - 1 :: self.step]]))
        heard: list[float] = []
        others = min(len(self.actors) - 1, 7)
        for other in range(1, others + 1):
            for when, samples in reversed(self.actors[(self_ + other) % len(self.actors)].board):
                if when + self.costs.one_way <= now:
                    heard += samples
                    break
        heard.sort()
        lower = me.pool.kth(width)
        for m, sample in enumerate(heard, 1):
            rest = width - m * self.step
            if rest < 0:
                break
            lower = min(lower, max(sample, me.pool.kth(rest)) if rest else sample)
        if lower < (self.lowered[-1][2] if self.lowered else math.inf):
            self.lowered.append((now, self_, lower))
        return self.costs.share(others)

    def serve(self, now: float, self_: int) -> float:
        """Give half to one who asked; how long that takes."""
        me = self.actors[self_]
        for other in range(len(self.actors)):
            waiting = self.actors[other]
            if other == self_ or waiting.wants_since + self.costs.one_way > now:
                continue
            moved = me.pool.split(self.limit(now, self_), ROOM)
            if not moved:
                return 0.0
            waiting.arriving.append((now + self.costs.one_way, moved))
            waiting.wants_since = math.inf
            return 2.0 * len(moved)
        return 0.0

    def receive(self, self_: int) -> None:
        """Take what arrived by the actor's clock."""
        me = self.actors[self_]
        for _, items in me.arriving:
            for item in items:
                me.pool.insert(item)
        me.arriving.clear()
