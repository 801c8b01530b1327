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
    """Fixed part of an expansion."""
    distance: float
    """One distance with all that belongs to it: tag, row, insertion."""
    one_way: float
    """A value stored by one thread until another sees it."""
    start: float
    """From asking for a helper until it runs."""
    round: float
    """A round of fork and join with two threads in which nobody works."""
    merge: float
    """One entry of another thread's pool, put into the own one."""

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
    handoffs: tuple[float, float, float, float],
) -> Costs:
    """Constants from sequential searches (least squares over runs of several widths) and from the hand-off probe.

    Args:
        nanoseconds: Time of each run, the mean of its queries.
        distances: Distances per query of each run.
        hops: Expansions per query of each run.
        handoffs: One way, empty round, start and merge, as ``measure_handoffs`` gives them.
    """
    design = np.stack([np.ones(len(hops)), np.asarray(hops), np.asarray(distances)], axis=1)
    weights = 1.0 / np.asarray(nanoseconds)
    (query, hop, distance), *_ = np.linalg.lstsq(design * weights[:, None], np.ones(len(hops)), rcond=None)
    if hop < 0 or distance < 0:
        # Hops and distances rise together: where they cannot be told apart, all is in the distance.
        (query, distance), *_ = np.linalg.lstsq(design[:, [0, 2]] * weights[:, None], np.ones(len(hops)), rcond=None)
        hop = 0.0
    one_way, round_, start, merge = handoffs
    return Costs(max(0.0, float(query)), float(hop), float(distance), one_way, start, round_, merge)
