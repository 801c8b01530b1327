"""The engines in simulated time: threads are actors with clocks of their own, and the one with the least acts.

An expansion claims its neighbours when it begins; what it found counts from its end on. What one thread tells another
arrives one way later.
"""

from __future__ import annotations

import heapq
import math

from .roles import roles
from .together import Together
from .world import Outcome, Pool, Search

__all__ = ["ENGINES", "simulate"]


def sequential(search: Search, k: int) -> Outcome:
    """One thread."""
    pool = Pool(search.width)
    now = search.costs.query + search.enter(0, 1, pool)
    while (item := pool.take(math.inf)) is not None:
        new = search.meet(item[1])
        now += search.costs.expansion(len(new))
        for candidate in new:
            pool.insert(candidate)
    return search.finish(now, [pool], k)


def edge(search: Search, threads: int, k: int) -> Outcome:
    """Fork and join in every hop."""
    pool = Pool(search.width)
    now = search.costs.query + search.costs.start + search.enter(0, 1, pool)
    while (item := pool.take(math.inf)) is not None:
        new = search.meet(item[1])
        slice_ = math.ceil(len(new) / threads)
        # Tags and insertions are the caller's alone; every slice waits for its own first row.
        now += (
            search.costs.expansion(slice_) + search.costs.insert * (len(new) - slice_) + search.costs.barrier(threads)
        )
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
            heapq.heappush(clocks, (clock + search.costs.expansion(len(new), workers), worker, done + 1))
        now += longest
        if workers > 1:
            moved = sum(len(pool.items) for pool in pools[1:])
            now += search.costs.barrier(threads) + 2 * search.costs.one_way + search.costs.merged(moved)
        known = set(master.items)
        for candidate in {item for pool in pools for item in pool.items} - known:
            master.insert(candidate)
        still = {item for pool in pools for item in pool.open}
        master.open = [item for item in master.items if item in still]
    return search.finish(now, [master], k)


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
        end = now + search.costs.expansion(len(new), threads)
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
