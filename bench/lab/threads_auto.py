"""Queries that arrive when they like, on two cores: which rule for their threads waits least. A model, no timing.

A query is 230 µs of work, 100 more where the cores have slept; two threads are 1.7 times as fast as one. A helper that
sleeps comes 60 µs late, and so does a query that waits; its core is idle meanwhile.
``python -m bench.lab.threads_auto`` prints the median and the 99th percentile of latency by rule and load.
"""

from __future__ import annotations

import numpy as np

WORK, ASLEEP, WAKE, SPEED, CORES = 230.0, 100.0, 60.0, 1.7, 2
RULES = ("one", "two", "wait", "give back")
"""``one``, ``two``: always so many threads. The others take two where both cores are free. ``wait``: who comes then
waits, and after that nobody takes two. ``give back``: who comes then gets the second core at once."""


def latencies(rule: str, load: float, count: int, seed: int) -> np.ndarray:
    """Microseconds from arrival to answer."""
    dice = np.random.default_rng(seed)
    due = np.cumsum(dice.exponential((WORK + 15) / load / CORES, count))
    work = WORK * np.clip(dice.normal(1, 0.2, count), 0.4, 2)
    running: dict[int, list[float]] = {}  # work left and threads
    waiting: list[int] = []
    woken: set[int] = set()
    done, now, slept, arrived = np.zeros(count), 0.0, 0.0, 0

    def speed(threads: float) -> float:
        return SPEED if threads == 2 else 1.0

    while arrived < count or running:
        ends = {query: now + left / speed(threads) for query, (left, threads) in running.items()}
        first = min(ends, key=lambda query: ends[query]) if ends else -1
        at = min(ends[first] if ends else np.inf, due[arrived] if arrived < count else np.inf)
        for one in running.values():
            one[0] -= (at - now) * speed(one[1])
        now = at
        if ends and ends[first] == at:
            done[first] = now - due[first]
            del running[first]
            slept = slept if running else now
        else:
            waiting.append(arrived)
            arrived += 1
        while waiting:
            if rule == "give back" and len(running) == 1:
                next(iter(running.values()))[1] = 1
            free = CORES - sum(int(threads) for _, threads in running.values())
            if free < (2 if rule == "two" else 1):
                woken.update(waiting if rule == "wait" else ())
                break
            threads = 1 if rule == "one" or free < CORES or (len(waiting) > 1 and rule != "two") else 2
            more = ASLEEP * (1 - np.exp((slept - now) / 300)) if not running else 20
            if threads == 2:
                more += 8 if rule == "two" else WAKE * (SPEED - 1)
            query = waiting.pop(0)
            running[query] = [work[query] + more + (WAKE if query in woken else 0), threads]
    return done


def main() -> None:
    """A line per load."""
    for load in (0.2, 0.5, 0.8, 0.95):
        parts = []
        for rule in RULES:
            found = [np.percentile(latencies(rule, load, 1000, seed), [50, 99]) for seed in range(40)]
            middle, tail = np.median(found, axis=0)
            parts.append(f"{rule}: {middle:.0f} {tail:.0f}")
        print(f"{load:.0%}  " + "  ".join(parts))


if __name__ == "__main__":
    main()
