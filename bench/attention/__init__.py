"""The attention room: A1 to A12 and A16; peers are vLLM's CPU kernel and torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.attention import dense

    for part in (dense,):
        yield from part.run(only, quick)
