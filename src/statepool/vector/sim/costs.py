"""What things cost in the simulator, and how the numbers are found on a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Costs", "fit"]


@dataclass(frozen=True, slots=True)
class Costs:
    """Nanoseconds. One set serves all engines; none is tuned to a result."""

    query: float
    """Fixed part of a query on one thread: arguments, preparation, answer."""
    hop: float
    """Choosing a candidate and the tags of its neighbours."""
    first: float
    """A list of distances before its first row is there, which each slice of a list pays."""
    row: float
    """One distance."""
    insert: float
    """One candidate on its way into a pool."""
    shared: float
    """What an expansion takes longer while a second thread expands: lines of tags move between the two."""
    one_way: float
    """A value stored by one thread until another sees it."""
    start: float
    """From asking for a helper until it runs."""
    round: float
    """A round of fork and join with two threads that hands ids over and back, in which nobody works."""
    merge: float
    """One entry of another thread's pool, put into the own one."""

    @property
    def distance(self) -> float:
        """One distance with its insertion."""
        return self.row + self.insert

    def meeting(self, threads: int = 1) -> float:
        """Before the distances of an expansion, where so many threads expand: who last wrote a line of tags is another
        one the more often, the more there are.
        """
        return self.hop + self.shared * 2 * (threads - 1) / threads

    def expansion(self, met: int, threads: int = 1) -> float:
        """Of a candidate with so many neighbours that nobody met."""
        return self.meeting(threads) + self.first + self.distance * met

    def merged(self, entries: int) -> float:
        """Entries of other threads' pools into the own one; they come by lines of eight."""
        return (self.merge + self.one_way / 8) * entries

    def barrier(self, threads: int) -> float:
        """A round with ``threads``: the caller tells and hears every helper over one line each."""
        return self.round + max(0, threads - 2) * self.one_way / 4

    def share(self, others: int) -> float:
        """A look at the boards of ``others``: two cache lines each, fetched side by side four at a time."""
        return 50.0 + self.one_way * (1 + others / 4)


def fit(
    nanoseconds: Sequence[float],
    distances: Sequence[float],
    hops: Sequence[float],
    steps: tuple[float, float, float, float],
    beside: tuple[float, float, float, float, float, float],
    handoffs: tuple[float, float, float, float],
) -> Costs:
    """Constants from sequential searches and from the probes.

    The parts of an expansion were timed one by one, so only their shares are taken from there. One factor for all of
    them and the fixed part of a query come from whole searches, by least squares over runs of several widths.

    Args:
        nanoseconds: Time of each run, the mean of its queries.
        distances: Distances per query of each run.
        hops: Expansions per query of each run.
        steps: Hop, first, row and insert, as ``measure_steps`` gives them.
        beside: Time, hops and distances of a thread alone and of one beside another, as ``measure_beside``
            gives them.
        handoffs: One way, round, start and merge, as ``measure_handoffs`` gives them.
    """
    hop, first, row, insert = steps
    timed = (hop + first) * np.asarray(hops) + (row + insert) * np.asarray(distances)
    weights = 1.0 / np.asarray(nanoseconds)
    design = np.stack([np.ones(len(timed)), timed], axis=1)
    (query, scale), *_ = np.linalg.lstsq(design * weights[:, None], np.ones(len(timed)), rcond=None)
    if query < 0:
        query, scale = 0.0, float(np.mean(np.asarray(nanoseconds) / timed))
    alone_ns, alone_hops, alone_distances, beside_ns, beside_hops, beside_distances = beside
    pace = alone_ns / ((hop + first) * alone_hops + (row + insert) * alone_distances)
    longer = beside_ns / pace - ((hop + first) * beside_hops + (row + insert) * beside_distances)
    shared = float(scale) * max(0.0, longer / beside_hops)
    one_way, round_, start, merge = handoffs
    hop, first, row, insert = (float(scale) * part for part in steps)
    return Costs(float(query), hop, first, row, insert, shared, one_way, start, round_, merge)
