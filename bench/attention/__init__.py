"""A1, A2, A6 to A8 on kernels, A3, A4 on models, A5 on keys, A10 to A16 on blocks, A17, A18 on a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.attention import blocks, buffer, decode, estimate, gpu, hybrid, probe, proof, served

    for part in (decode, probe, estimate, proof, buffer, blocks, hybrid, served, gpu):
        yield from part.run(only, quick)
