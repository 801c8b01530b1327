"""A23: the equal-cost table, the batches, the best case per dollar, and how often the planner's choice is the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.machine import LoadWatch
from bench.row import Row
from statepool.core.errors import InvalidConfig
from statepool.sim.offload.choose import choose
from statepool.sim.offload.costs import DEVICES, MODELS, WORKLOADS, Layout, estimate
from statepool.sim.offload.events import measure

EQUAL_COST = {
    "llama-33b": (Layout(2), Layout(1, 2, 2)),
    "llama-65b": (Layout(4), Layout(2, 4, 2)),
    "llama3-70b": (Layout(4), Layout(2, 4, 2)),
}
H100, H20 = DEVICES["h100"], DEVICES["h20"]
AS_GOOD = 0.97
"""Two layouts whose simulated throughput differs by less count as equal: so much does it vary with the seed."""


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows, if wanted."""
    if only and "A23" not in only:
        return
    watch = LoadWatch()
    for row in (*_table(), _per_dollar(), _choices(quick)):
        row.command, row.load = "python -m bench lamina --only A23", watch.stop()
        yield row


def _table() -> Iterator[Row]:
    gains, batches, declined = {}, [], []
    for name, (together, apart) in EQUAL_COST.items():
        for work in WORKLOADS.values():
            a, b = (estimate(MODELS[name], work, layout, H100, H20) for layout in (together, apart))
            assert a is not None and b is not None
            gains[f"{name} {work.name}"] = 100 * (b.tokens_s / a.tokens_s - 1)
            batches.append(b.batch / a.batch)
            if choose(MODELS[name], work, H100, H20, a.dollars).declined:
                declined.append(f"{name} {work.name}")
    inside = [gain for gain in gains.values() if 16.1 <= gain <= 90.1]
    row = Row("A23a", "cells of the equal-cost table within the paper's range, or declined", "of 12", "higher", 12.0)
    explained = sum(1 for key in declined if not 16.1 <= gains[key] <= 90.1)
    row.value, row.own = float(len(inside) + explained), f"{len(inside)} within +16.1 to +90.1 %, {explained} declined"
    row.note = ", ".join(f"{key} {gain:+.1f} %" for key, gain in gains.items()) + (
        "; declined, since its larger batch makes the model side wait for arithmetic: " + ", ".join(declined)
    )
    yield row
    row = Row("A23b", "batch of the attention workers over the batch together, mean", "x", "higher", 2.3)
    row.value, row.own = sum(batches) / len(batches), f"{min(batches):.2f} to {max(batches):.2f}"
    row.peer, row.peer_value, row.peer_unit = "the paper", 2.39, "x"
    yield row


def _per_dollar() -> Row:
    found = []
    for name, shape in MODELS.items():
        for work in WORKLOADS.values():
            for count in range(1, 5):
                alone = estimate(shape, work, Layout(count), H100, H20)
                if alone is None:
                    continue
                for memory in range(1, 9):
                    apart = estimate(shape, work, Layout(count, memory, 2), H100, H20)
                    if apart is not None:
                        where = f"{name} {work.name}: {apart.layout.text} over {count} H100 alone"
                        ratio = apart.tokens_dollar / alone.tokens_dollar
                        found.append((ratio, f"{where}, which hold {alone.batch:.1f} requests"))
    best, where = max(found)
    row = Row("A23c", "tokens per dollar over the same compute devices alone, best case", "x", "higher", 12.1)
    row.value, row.own, row.note = best, where, "closed form; the first version of the paper has 1.48 to 12.1"
    return row


def _choices(quick: bool) -> Row:
    right, asked, wrong = 0, 0, []
    for name, shape in MODELS.items():
        for work in WORKLOADS.values():
            for budget in (25, 45) if quick else (20, 25, 30, 35, 45, 60, 80):
                try:
                    choice = choose(shape, work, H100, H20, budget)
                except InvalidConfig:
                    continue
                seeds = range(1 if quick else 3)
                found = {
                    each.layout: sum(measure(shape, work, each.layout, H100, H20, seed=s, steps=40) for s in seeds)
                    for each in choice.all
                }
                asked += 1
                if found[choice.best.layout] >= AS_GOOD * max(found.values()):
                    right += 1
                else:
                    wrong.append(f"{name} {work.name} ${budget}")
    row = Row("A23d", "choices that are the best of an exhaustive simulation, event by event", "%", "higher", 95.0)
    row.value, row.own = 100 * right / asked, f"{right} of {asked}"
    row.note = f"every layout of every budget simulated with drawn lengths; as good within {1 - AS_GOOD:.0%}" + (
        f"; not: {', '.join(wrong)}" if wrong else ""
    )
    return row
