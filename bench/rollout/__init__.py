"""The rollout room: R1 to R12 and R15, the measures of its design."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.rollout import live, proofs, simulated, trees

    for part in (simulated, proofs, trees, live):
        yield from part.run(only, quick)
