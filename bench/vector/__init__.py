"""The vector room: V1 to V20; peers: RaBitQ's quantised graph, hnswlib, faiss, usearch, SVS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    # Imported here: an index's own process imports this package too, and has no more than numpy.
    from bench.vector import cases

    yield from cases.run(only, quick)
