"""The store room: M1 to M13 and M16; peers are RocksDB, LMDB, SQLite and Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Measure the wanted rows (all when ``only`` is empty), yielding each as it is done."""
    # Imported here: a store's own process imports this package too, and has no numpy for the rest of the runner.
    from bench.store import cases, failover, mechanisms, reopen, written

    yield from cases.run(only, quick)
    yield from reopen.run(only, quick)
    yield from mechanisms.run(only, quick)
    yield from failover.run(only, quick)
    yield from written.run(only, quick)
