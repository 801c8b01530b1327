"""The topology room: T1 to T7."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.topo import curves, verdicts

    for part in (curves, verdicts):
        yield from part.run(only, quick)
