"""The train room: G13, G14 and B1 to B5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.machine import LoadWatch
from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.train import agents, oracles, race

    for name, rows in (("G13", oracles.run), ("G14", race.run)):
        if not only or name in only:
            watch = LoadWatch()
            for row in rows(quick):
                row.command, row.load = f"python -m bench train --only {name}", watch.stop()
                yield row
                watch = LoadWatch()
    watch = LoadWatch()
    for row in agents.run(only, quick) if not only or any(name.startswith("B") for name in only) else ():
        row.command, row.load = f"python -m bench train --only {row.id[:2]}", watch.stop()
        yield row
        watch = LoadWatch()
