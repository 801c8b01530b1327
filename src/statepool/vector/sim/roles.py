"""The engine ``roles`` in simulated time: maintainers own candidates, calculators turn ids into distances."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from .together import Together
from .world import Candidate, Outcome, Search

__all__ = ["roles"]

LOW, CLAIM = 3, 4
"""Distances that wait per calculator, and those it takes at a time, as in the engine."""


@dataclass(slots=True)
class Desk:
    """Where a maintainer leaves ids and finds distances, in the order of asking."""

    calculators: int
    asked: list[tuple[float, Candidate]] = field(default_factory=list)
    """(when, what)"""
    ready: list[tuple[float, bool]] = field(default_factory=list)
    """Of every claimed one: when it is there, and whether another thread did it."""
    returned: int = 0
    free: float = 0.0
    """When the line that claims are made on can move again."""
    idle: list[tuple[float, int]] = field(default_factory=list)
    """Calculators without work, by when they became so."""

    @property
    def waiting(self) -> int:
        """Asked for and claimed by nobody yet."""
        return len(self.asked) - len(self.ready)

    @property
    def quiet(self) -> bool:
        """Nothing is under way."""
        return self.returned == len(self.asked)

    def claim(self, now: float, search: Search, own: bool) -> float:
        """Take up to four that are published; when they are done."""
        costs, first = search.costs, len(self.ready)
        count = min(CLAIM, self.waiting)
        published = self.asked[first + count - 1][0]
        # Claims of other threads are made on one line, and it moves to each of them in turn; ids come by another.
        begun = now if own else max(now, self.free, published + costs.one_way) + costs.one_way
        self.free = max(self.free, begun)
        done = begun + (0.0 if own else costs.one_way) + costs.first + costs.row * count
        self.ready += [(done, not own)] * count
        return done

    def collect(self, now: float, one_way: float) -> Iterator[tuple[Candidate, bool]]:
        """What is there in the order of asking, and whether another thread did it."""
        while self.returned < len(self.ready):
            done, foreign = self.ready[self.returned]
            if done + (one_way if foreign else 0.0) > now:
                return
            yield self.asked[self.returned][1], foreign
            self.returned += 1


def roles(search: Search, threads: int, k: int, every: int) -> Outcome:
    """Groups of a maintainer and calculators; from 16 threads on one more does nothing but balance."""
    groups, costs = max(1, threads // 8), search.costs
    world = Together(search, groups)
    desks = [Desk(max(1, threads // groups - 1)) for _ in range(groups)]
    events: list[tuple[float, int]] = []
    for number, actor in enumerate(world.actors):
        begun = costs.query + (costs.start + number * costs.one_way / 4 if number else 0.0)
        actor.clock = begun + search.enter(number, groups, actor.pool)
        heapq.heappush(events, (actor.clock, number))
    for worker in range(groups, threads - (threads >= 16)):
        desks[worker % groups].idle.append((costs.query + costs.start + worker * costs.one_way / 4, worker))
    last = 0.0
    while events:
        now, number = heapq.heappop(events)
        if number >= groups:
            desk = desks[number % groups]
            if desk.waiting:
                heapq.heappush(events, (desk.claim(now, search, own=False), number))
            else:
                desk.idle.append((now, number))
            continue
        last = max(last, now)
        wake, further = maintain(world, desks[number], now, number, every)
        for when, worker in wake:
            heapq.heappush(events, (when, worker))
        if further is not None:
            heapq.heappush(events, (further, number))
        for other, idle in enumerate(world.actors):
            if idle.arriving and other != number and not any(event[1] == other for event in events):
                heapq.heappush(events, (idle.arriving[0][0], other))
    return search.finish(last + costs.one_way, [actor.pool for actor in world.actors], k)


def maintain(
    world: Together, desk: Desk, now: float, number: int, every: int
) -> tuple[list[tuple[float, int]], float | None]:
    """One turn of a maintainer: whom it wakes when, and when its next turn is; None when it rests."""
    actor, costs, search = world.actors[number], world.costs, world.search
    world.receive(number)
    limit, end, lines = world.limit(now, number), now, 0.0
    for candidate, foreign in desk.collect(now, costs.one_way):
        if candidate[0] <= limit:
            actor.pool.insert(candidate)
        end += costs.insert
        lines += foreign / CLAIM
    # Distances come by lines of about as many as are claimed at a time; the count of claims by one more.
    end += costs.one_way * (math.ceil(lines) + 1 if lines else 0)
    if desk.waiting < LOW * desk.calculators and (item := actor.pool.take(limit)) is not None:
        end += costs.meeting(len(world.actors))
        desk.asked += [(end, candidate) for candidate in search.meet(item[1])]
        wake = [(max(end + costs.one_way, since), worker) for since, worker in desk.idle] if desk.waiting else []
        if wake:
            desk.idle.clear()
        actor.since += 1
        if actor.since % every == 0:
            end += world.share(end, number)
        return wake, end + world.serve(end, number)
    if desk.quiet:
        actor.wants_since = end + world.share(end, number)
        return [], None
    if desk.waiting:
        return [], desk.claim(end, search, own=True)
    done, foreign = desk.ready[desk.returned]
    return [], max(end + 1.0, done + (costs.one_way if foreign else 0.0))
