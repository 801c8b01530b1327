"""The engine room: E1 to E9 against peers, and the proofs P1, D1, D2, K1, S1, S2, A1, A2."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from bench import bounds
from bench.engine import crowd, proofs, served, speed
from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    if _wants(only, "E1", "E2", "E3", "E4", "E5", "E6", "E7"):
        yield from speed.run(only, quick, bounds.probe(os.cpu_count() or 1))
    if _wants(only, "E8", "E9"):
        yield from served.run(only, quick)
    yield from proofs.run(only)
    if _wants(only, "A2"):
        yield from crowd.run(quick)


def _wants(only: Sequence[str], *ids: str) -> bool:
    return not only or any(name[:2] in ids for name in only)
