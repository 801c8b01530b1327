"""Rotational staggered pipelining: several batches under way, so that neither side of the split waits for the other.

While the attention workers serve one batch, the model computes a slice of another. With ``n`` batches there are
``n - 1`` model replicas, and slice ``k`` of batch ``j`` runs on replica ``(j + k) mod (n - 1)`` (Lamina, 4.4): every
replica gets work at equal distances, and with two batches nothing ever changes its replica.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from statepool.engine.batch import Batch

__all__ = ["replica_of", "rotate", "split", "turns"]

Slice = Callable[[int, int], None]
"""Runs slice ``k`` of batch ``j``: waits for the attention before it, computes, and sends what is behind it."""


def replica_of(batch: int, part: int, batches: int) -> int:
    """The replica, from 0, that runs slice ``part`` of ``batch``."""
    return (batch + part) % max(batches - 1, 1)


def turns(batches: int, parts: int) -> list[list[tuple[int, int]]]:
    """For each replica the (batch, slice) it runs, in order."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(max(batches - 1, 1))]
    for part in range(parts):
        for batch in range(batches):
            found[replica_of(batch, part, batches)].append((batch, part))
    return found


def rotate(batches: int, parts: int, run: Slice) -> None:
    """Run every slice of every batch, one thread per replica; in the caller's where there is one replica.

    Raises:
        Exception: what a slice raised; the other replicas then stop before their next one.
    """
    failures: list[Exception] = []

    def work(mine: Sequence[tuple[int, int]]) -> None:
        try:
            for batch, part in mine:
                if failures:
                    return
                run(batch, part)
        except Exception as error:
            failures.append(error)
            raise

    mine = turns(batches, parts)
    if len(mine) == 1:
        return work(mine[0])
    with ThreadPoolExecutor(len(mine), "replica") as replicas:
        list(replicas.map(work, mine))  # raises what one raised
    return None


def split(batch: Batch, count: int) -> list[tuple[slice, Batch]]:
    """At most ``count`` batches of whole requests with about as many rows each, and which rows they are."""
    rows, starts = batch.tokens.size, batch.query_start
    requests = len(batch.context_len)
    cuts = np.searchsorted(starts, np.arange(1, count) * rows / count)
    edges = sorted({0, requests, *(int(cut) for cut in cuts)})
    found = []
    for low, high in pairwise(edges):
        at = slice(int(starts[low]), int(starts[high]))
        found.append(
            (
                at,
                Batch(
                    batch.tokens[at],
                    batch.positions[at],
                    batch.slots[at],
                    batch.block_tables[low:high],
                    starts[low : high + 1] - starts[low],
                    batch.context_len[low:high],
                ),
            )
        )
    return found
