"""The serve room: the simulator (A2 to A8, A16 to A18, H), block transfer (A9, A10, A15) and the cluster's proofs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    from bench import proofs
    from bench.serve import fidelity, overlap, simulated, staged, transfer
    from bench.serve.proofs import PROOFS

    def wanted(name: str) -> bool:
        return not only or any(each == name or each.rstrip("abcd") == name for each in only)

    yield from simulated.run(wanted, quick)
    yield from overlap.run(wanted, quick)
    yield from staged.run(wanted, quick)
    yield from transfer.run(wanted, quick)
    yield from fidelity.run(wanted, quick)
    yield from proofs.run(PROOFS, only)
