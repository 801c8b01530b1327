"""What every search is: rounds of candidates that depend on a seed and their number only.

A search keeps no state between rounds, so one that was killed goes on at the next round, and rounds can be shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.objectives import Objective

__all__ = ["SEARCHERS", "Batch", "Searcher", "rng", "searcher"]


@dataclass(frozen=True)
class Batch:
    """What rounds [first, first + rounds) found best: phases [codes, n] of an alphabet."""

    first: int
    rounds: int
    phases: np.ndarray
    cost: float
    """In the units of ``Objective.costs``: of two candidates the smaller is better."""
    evaluations: int
    last: bool = False
    """Whether there is nothing left to search after this batch."""


class Searcher(Protocol):
    """Makes candidates for an objective."""

    name: str
    alphabet: int
    """Phases of the symbols it makes."""

    def batches(self, objective: Objective, n: int, seed: int, first: int) -> Iterator[Batch]:
        """Yield batches from round ``first`` on, each some tenths of a second of work, until nothing is left.

        Raises:
            InvalidRequest: This search cannot do this objective or length.
        """
        ...


SEARCHERS: dict[str, Callable[[dict[str, Any]], Searcher]] = {}
"""Searches by name, made from their options (alphabet, rounds of training and the like)."""


def searcher(name: str, options: dict[str, Any] | None = None) -> Searcher:
    """The search of this name.

    Raises:
        InvalidRequest: There is none.
    """
    if name not in SEARCHERS:
        raise InvalidRequest(f"algo: '{name}' is none of {', '.join(sorted(SEARCHERS))}", param="algo")
    made, wanted = SEARCHERS[name](options or {}), (options or {}).get("alphabet") or 2
    if made.alphabet != wanted:
        raise InvalidRequest(f"alphabet: '{name}' makes binary codes; descent takes {wanted} phases", param="alphabet")
    return made


def rng(seed: int, number: int) -> np.random.Generator:
    """The noise of one round: counter-based, keyed by seed and round."""
    return np.random.Generator(np.random.Philox(key=[seed, number]))


def phases_of(signs: np.ndarray) -> np.ndarray:
    """0 for +1, 1 for -1."""
    return (signs < 0).astype(np.int64)
