"""Tabu search and self-avoiding walk: native for energy, ratio and pairs, in Python for every other objective.

The tabu search forbids a symbol for a while after its flip; the self-avoiding walk (Bošković, Brglez, Brest,
arXiv 1406.5301) forbids every code it has visited; ``skew`` walks among skew-symmetric codes of odd length, and lists
the pairs made of two such codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code
from statepool.tasks.sequences.correlation import core
from statepool.tasks.sequences.objectives import Energy, Objective, Sir
from statepool.tasks.sequences.search.base import SEARCHERS, Batch, phases_of, rng
from statepool.tasks.sequences.search.skew_pairs import SkewPairs
from statepool.tasks.sequences.sets import ZeroZone

__all__ = ["LocalSearch"]

_NOTHING = -1e300
_PAIR_PATIENCE = 1500
_RIDGES, _TURN = (0.0, 0.008, 0.017, 0.03, 0.05, 0.07, 0.1), 4
"""White noise per symbol that a search under a limit of loss tries, and the rounds each is tried for."""


class LocalSearch:
    """One-flip local search with restarts; ``method`` is tabu or walk."""

    alphabet = 2

    def __init__(self, name: str, method: str, *, skew: bool = False) -> None:
        self.name, self.method, self.skew = name, method, skew

    def batches(self, objective: Objective, n: int, seed: int, first: int) -> Iterator[Batch]:
        """Rounds in batches of some tenths of a second."""
        if n < 2:
            raise InvalidRequest(f"n: must be at least 2, not {n}", param="n")
        if self.skew and isinstance(objective, ZeroZone):
            yield from SkewPairs().batches(objective, n, seed, first)
            return
        if self.skew and not (isinstance(objective, Energy) and n % 2):
            raise InvalidRequest(
                "algo: skew needs an objective of the energy (labs, merit, isl) and an odd n, or zcp", param="algo"
            )
        native = isinstance(objective, Energy | Sir | ZeroZone)
        if native and not isinstance(objective, Sir) and n > core.LONGEST:
            raise InvalidRequest(f"n: this search takes at most {core.LONGEST} symbols, not {n}", param="n")
        size = self._batch(objective, n) if native else 1
        while True:
            rounds = size - first % size  # batches end at the same rounds wherever a search begins
            yield self._native(objective, n, seed, first, rounds) if native else self._plain(objective, n, seed, first)
            first += rounds

    def _batch(self, objective: Objective, n: int) -> int:
        """Rounds of some tenths of a second, by counting: a clock would make what is found depend on the machine."""
        if isinstance(objective, Sir):
            taps = n if objective.length is None else objective.length
            return max(1, int(3e4 / taps**2)) if objective.loss_min is None else _TURN
        if isinstance(objective, Energy):
            return max(1, int(2e6 / n**2))
        return max(1, int(1e3 / n))

    def _native(self, objective: Any, n: int, seed: int, first: int, rounds: int) -> Batch:
        if isinstance(objective, Sir):
            taps = n if objective.length is None else objective.length
            ridge = objective.ridge
            if objective.loss_min is not None and ridge == 0:
                # which noise leads to which loss depends on the code: batches take turns
                ridge = n * _RIDGES[first // _TURN % len(_RIDGES)]
            found = core.search_sir(n, taps, ridge, seed, first, rounds, self.method, 300, _NOTHING)
        elif isinstance(objective, ZeroZone):
            found = core.search_pair(n, *objective.loose(n), seed, first, rounds, self.method, _PAIR_PATIENCE, 0.0)
        else:
            found = core.search_energy(n, self.skew, seed, first, rounds, self.method, 8 * n, 0.0)
        signs, cost, _, _, evaluations = found
        phases = phases_of(signs.reshape(-1, n))
        if isinstance(objective, Sir) and (objective.loss_min is not None or objective.ridge):
            cost = -objective.score([Code(tuple(map(int, phases[0])))]).value
        return Batch(first, rounds, phases, cost, evaluations)

    def _plain(self, objective: Objective, n: int, seed: int, number: int) -> Batch:
        """One round with NumPy: the twin of the native search, for any objective."""
        noise = rng(seed, number)
        here = noise.choice(np.array([-1, 1], np.int8), (objective.codes, n))
        cost = float(objective.costs(here[None])[0])
        best, best_cost, evaluations = here.copy(), cost, 1
        size = here.size
        free, visited = np.zeros(size, np.int64), {here.tobytes()}
        last, step = 0, 0
        while step - last <= 4 * size and best_cost > 0:
            step += 1
            near = np.repeat(here.reshape(1, size), size, 0)
            near[np.arange(size), np.arange(size)] *= -1
            costs = objective.costs(near.reshape(size, *here.shape))
            evaluations += size
            if self.method == "tabu":
                barred = (free > step) & (costs >= best_cost)
            else:
                barred = np.array([row.tobytes() in visited for row in near])
            if barred.all():
                break
            costs[barred] = np.inf
            move = int(noise.choice(np.flatnonzero(costs == costs.min())))
            here, cost = near[move].reshape(here.shape), float(costs[move])
            free[move] = step + 3 + int(noise.integers(size // 8 + 1))
            visited.add(here.tobytes())
            if cost < best_cost:
                best, best_cost, last = here.copy(), cost, step
        return Batch(number, 1, phases_of(best), best_cost, evaluations)


SEARCHERS["tabu"] = lambda _: LocalSearch("tabu", "tabu")
SEARCHERS["walk"] = lambda _: LocalSearch("walk", "walk")
SEARCHERS["skew"] = lambda _: LocalSearch("skew", "walk", skew=True)
