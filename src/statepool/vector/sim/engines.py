"""The engines in simulated time: threads are actors with clocks of their own, and the one with the least acts.

An expansion claims its neighbours when it begins; what it found counts from its end on. What one thread tells another
arrives one way later.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from .world import Candidate, Outcome, Pool, Search

__all__ = ["ENGINES", "simulate"]

ROOM = 32
"""Candidates that change hands at once, as in the engine."""


def sequential(search: Search, k: int) -> Outcome:
    """One thread."""
    pool = Pool(search.width)
    now = search.costs.query + search.enter(0, 1, pool)
    while (item := pool.take(math.inf)) is not None:
        new = search.meet(item[1])
        now += search.cost(len(new))
        for candidate in new:
            pool.insert(candidate)
    return search.finish(now, [pool], k)


def edge(search: Search, threads: int, k: int) -> Outcome:
    """Fork and join in every hop."""
    pool = Pool(search.width)
    now = search.costs.query + search.costs.start + search.enter(0, 1, pool)
    while (item := pool.take(math.inf)) is not None:
        new = search.meet(item[1])
        now += search.cost(0) + search.costs.distance * math.ceil(len(new) / threads) + search.costs.barrier(threads)
        now += 2 * search.costs.one_way  # ids there, distances back
        for candidate in new:
            pool.insert(candidate)
    return search.finish(now, [pool], k)


def iqan(search: Search, threads: int, k: int, hops: int) -> Outcome:
    """Rounds of at most ``hops`` expansions per thread between two joins."""
    master = Pool(search.width)
    now = search.costs.query + search.costs.start + search.enter(0, 1, master)
    rounds = 0
    while master.open:
        limit, workers = master.kth(search.width), 1 if rounds == 0 else threads
        rounds += 1
        dealt, master.open = master.open, []
        pools = [Pool(search.width) for _ in range(workers)]
        for turn, candidate in enumerate(dealt):
            pools[turn % workers].insert(candidate)
        clocks = [(0.0, worker, 0) for worker in range(workers)]
        heapq.heapify(clocks)
        longest = 0.0
        while clocks:
            clock, worker, done = heapq.heappop(clocks)
            longest = max(longest, clock)
            most = 1 if workers == 1 else hops
            item = pools[worker].take(limit) if done < most else None
            if item is None:
                continue
            new = search.meet(item[1])
            for candidate in new:
                if candidate[0] <= limit:
                    pools[worker].insert(candidate)
            heapq.heappush(clocks, (clock + search.cost(len(new)), worker, done + 1))
        now += longest
        if workers > 1:
            moved = sum(len(pool.items) for pool in pools[1:])
            now += search.costs.barrier(threads) + 2 * search.costs.one_way + search.costs.merge * moved
        known = set(master.items)
        for candidate in {item for pool in pools for item in pool.items} - known:
            master.insert(candidate)
        still = {item for pool in pools for item in pool.open}
        master.open = [item for item in master.items if item in still]
    return search.finish(now, [master], k)


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


def asynchronous(search: Search, threads: int, k: int, every: int, bound: bool = True, gifts: bool = True) -> Outcome:
    """Every thread does everything; without ``bound`` or ``gifts`` for ablation."""
    world = Together(search, threads)
    events: list[tuple[float, int]] = []
    for number, actor in enumerate(world.actors):
        begun = search.costs.query + (search.costs.start + number * search.costs.one_way / 4 if number else 0.0)
        actor.clock = begun + search.enter(number, threads, actor.pool)
        heapq.heappush(events, (actor.clock, number))
    last = 0.0
    while events:
        now, number = heapq.heappop(events)
        last = max(last, now)
        actor = world.actors[number]
        world.receive(number)
        item = actor.pool.take(world.limit(now, number) if bound else math.inf)
        if item is None:
            actor.wants_since = now + (world.share(now, number) if bound else 0.0)
            continue
        new = search.meet(item[1])
        end = now + search.cost(len(new))
        for candidate in new:
            actor.pool.insert(candidate)
        actor.since += 1
        if bound and actor.since % every == 0:
            end += world.share(end, number)
        if gifts:
            end += world.serve(end, number)
            for other, waiting in enumerate(world.actors):
                if waiting.arriving and other != number and not any(event[1] == other for event in events):
                    heapq.heappush(events, (waiting.arriving[0][0], other))
        heapq.heappush(events, (end, number))
    return search.finish(last + (search.costs.one_way if threads > 1 else 0.0), [a.pool for a in world.actors], k)


def nosync(search: Search, threads: int, k: int) -> Outcome:
    """Searches on their own over one visited set."""
    return asynchronous(search, threads, k, every=1 << 30, bound=False, gifts=False)


def roles(search: Search, threads: int, k: int, every: int) -> Outcome:
    """Groups of a maintainer and calculators."""
    groups = max(1, threads // 8)
    balancer = 1 if threads >= 16 else 0
    world = Together(search, groups)
    costs = search.costs
    share, more = divmod(threads - groups - balancer, groups)
    calculators = [share + (group < more) for group in range(groups)]
    free: list[list[float]] = [[costs.query + costs.start] * max(1, count) for count in calculators]
    back: list[list[tuple[float, Candidate]]] = [[] for _ in range(groups)]
    events: list[tuple[float, int]] = []
    for number, actor in enumerate(world.actors):
        begun = costs.query + (costs.start if number else 0.0)
        actor.clock = begun + search.enter(number, groups, actor.pool)
        heapq.heappush(events, (actor.clock, number))
    last = 0.0
    while events:
        now, number = heapq.heappop(events)
        last = max(last, now)
        actor, returned = world.actors[number], back[number]
        world.receive(number)
        end = now
        while returned and returned[0][0] <= now:
            actor.pool.insert(heapq.heappop(returned)[1])
            end += costs.distance * 0.15  # the insertion is the maintainer's, the rest of a distance the calculator's
        waiting = sum(1 for when, _ in returned if when > now + costs.distance)
        if (
            waiting < 3 * max(1, calculators[number])
            and (item := actor.pool.take(world.limit(now, number))) is not None
        ):
            end += costs.hop
            new = search.meet(item[1])
            for candidate in new:
                at = heapq.heappop(free[number])
                done = max(at, end + costs.one_way) + costs.distance
                heapq.heappush(free[number], done)
                heapq.heappush(returned, (done + costs.one_way, candidate))
            actor.since += 1
            if actor.since % every == 0:
                end += world.share(end, number)
            end += world.serve(end, number)
            for other, idle in enumerate(world.actors):
                if idle.arriving and other != number and not any(event[1] == other for event in events):
                    heapq.heappush(events, (idle.arriving[0][0], other))
            heapq.heappush(events, (end, number))
        elif returned:
            heapq.heappush(events, (max(end, returned[0][0]), number))
        else:
            actor.wants_since = end + world.share(end, number)
    return search.finish(last + costs.one_way, [actor.pool for actor in world.actors], k)


ENGINES = ("sequential", "edge", "iqan", "nosync", "async", "roles")
"""What ``simulate`` knows."""


def simulate(engine: str, search: Search, threads: int, k: int, hops: int = 8) -> Outcome:
    """One query by ``engine``; ``hops`` is X of iQAN, and between two looks at the others for ``async`` and ``roles``.

    Raises:
        KeyError: an unknown engine.
    """
    if threads == 1 or engine == "sequential":
        return sequential(search, k)
    return {
        "edge": lambda: edge(search, threads, k),
        "iqan": lambda: iqan(search, threads, k, hops),
        "nosync": lambda: nosync(search, threads, k),
        "async": lambda: asynchronous(search, threads, k, hops),
        "roles": lambda: roles(search, threads, k, hops),
    }[engine]()
