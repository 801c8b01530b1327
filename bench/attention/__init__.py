"""The attention room: A1, A2, A6 to A8 on the kernels, A3 on bundled models, A5 on drawn keys, A10 to A16 on blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.attention import blocks, buffer, decode, gpu, hybrid, probe, proof

    for part in (decode, probe, proof, buffer, blocks, hybrid, gpu):
        yield from part.run(only, quick)
