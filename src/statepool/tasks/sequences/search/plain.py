"""Searches in a few lines: random codes, all codes, and coordinate descent over an alphabet of phases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.objectives import Energy, Objective, PeakSidelobe
from statepool.tasks.sequences.search.base import SEARCHERS, Batch, phases_of, rng

__all__ = ["Descent", "Exhaustive", "Random"]

_AT_ONCE = 1 << 14
_MOST_BITS = 30


class Random:
    """Independent codes: what any search must beat."""

    name, alphabet = "random", 2

    def batches(self, objective: Objective, n: int, seed: int, first: int) -> Iterator[Batch]:
        """A round is 4096 codes."""
        while True:
            signs = rng(seed, first).choice(np.array([-1, 1], np.int8), (4096, objective.codes, n))
            costs = objective.costs(signs)
            best = int(costs.argmin())
            yield Batch(first, 1, phases_of(signs[best]), float(costs[best]), len(signs))
            first += 1


class Exhaustive:
    """Every binary set of codes that begins with +1: its best is proved to be the best."""

    name, alphabet = "exhaustive", 2

    def batches(self, objective: Objective, n: int, seed: int, first: int) -> Iterator[Batch]:
        """Round r is the codes whose bits count from r * 2^14."""
        bits = objective.codes * n - 1
        if bits > _MOST_BITS:
            raise InvalidRequest(f"n: {objective.codes} x {n} symbols are too many to try all of them", param="n")
        total = 1 << bits
        for start in range(first * _AT_ONCE, total, _AT_ONCE):
            numbers = np.arange(start, min(total, start + _AT_ONCE), dtype=np.int64)
            places = np.arange(bits, -1, -1)
            signs = (1 - 2 * (numbers[:, None] >> places & 1)).astype(np.int8).reshape(len(numbers), objective.codes, n)
            costs = objective.costs(signs)
            best = int(costs.argmin())
            last = start + _AT_ONCE >= total
            yield Batch(start // _AT_ONCE, 1, phases_of(signs[best]), float(costs[best]), len(numbers), last)


class Descent:
    """Coordinate descent: each symbol in turn takes its best phase of the alphabet, until none changes."""

    name = "descent"

    def __init__(self, alphabet: int = 2) -> None:
        self.alphabet = alphabet

    def batches(self, objective: Objective, n: int, seed: int, first: int) -> Iterator[Batch]:
        """A round is one descent from a random code.

        Raises:
            InvalidRequest: More than two phases with an objective other than labs, merit, isl and psl.
        """
        if self.alphabet > 2 and not isinstance(objective, Energy | PeakSidelobe):
            raise InvalidRequest("alphabet: descent over phases knows labs, merit, isl and psl", param="alphabet")
        while True:
            noise, evaluations = rng(seed, first), 0
            phases = noise.integers(0, self.alphabet, (objective.codes, n))
            cost, stale, size = np.inf, 0, phases.size
            order = noise.permutation(size)
            while stale < size:
                for place in order:
                    tried = np.repeat(phases.reshape(1, size), self.alphabet, 0)
                    tried[:, place] = np.arange(self.alphabet)
                    costs = self._costs(objective, tried.reshape(self.alphabet, *phases.shape))
                    evaluations += self.alphabet
                    best = int(costs.argmin())
                    stale = 0 if costs[best] < cost - 1e-12 else stale + 1
                    if costs[best] < cost - 1e-12:
                        phases, cost = tried[best].reshape(phases.shape), float(costs[best])
                    if stale >= size:
                        break
            yield Batch(first, 1, phases, cost, evaluations)
            first += 1

    def _costs(self, objective: Objective, phases: np.ndarray) -> np.ndarray:
        if self.alphabet == 2:
            return objective.costs((1 - 2 * phases).astype(np.int8))
        n = phases.shape[2]
        values = np.exp(2j * np.pi * phases[:, 0] / self.alphabet)
        rho = np.abs(np.fft.ifft(np.abs(np.fft.fft(values, 2 * n)) ** 2)[:, 1:n])
        if isinstance(objective, Energy):
            total: np.ndarray = (rho**2).sum(1)
            return total
        peak = rho.max(1)
        cost: np.ndarray = peak + (rho**4).sum(1) / (n * (peak + 1) ** 4)
        return cost


SEARCHERS["random"] = lambda _: Random()
SEARCHERS["exhaustive"] = lambda _: Exhaustive()
SEARCHERS["descent"] = lambda options: Descent(int(options.get("alphabet") or 2))
