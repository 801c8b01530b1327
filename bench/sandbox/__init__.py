"""The sandbox room: T1 to T22, by the numbers of its measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.sandbox import burst, memory, moves, proofs, shared, soak, start, state, turns, workload

    for part in (start, burst, workload, moves, memory, state, turns, shared, soak, proofs):
        yield from part.run(only, quick)
