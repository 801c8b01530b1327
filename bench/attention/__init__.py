"""The attention room: A1, A2, A6 to A8 on the kernels, A3 on the bundled model, A5 on drawn keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench.attention import buffer, decode, probe, proof

    yield from decode.run(only, quick)
    yield from probe.run(only, quick)
    yield from proof.run(only, quick)
    yield from buffer.run(only, quick)
