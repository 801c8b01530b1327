"""Attention workers: slices and bytes (A19, A20), overlap and pipelining (A21, A22), the plan (A23), kernels (A24)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.lamina import counts, emulated, gpu, kernel, planned

    for part in (counts, emulated, planned, kernel, gpu):
        yield from part.run(only, quick)
