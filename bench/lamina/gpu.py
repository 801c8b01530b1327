"""A25 and A26: what needs a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.row import Row


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Rows without a value where there is no GPU."""
    return iter(())
