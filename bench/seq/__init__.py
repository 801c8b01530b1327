"""The sequence room: S1 to S10."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.seq import gan, search, truth

    for part in (truth, search, gan):
        yield from part.run(only, quick)
