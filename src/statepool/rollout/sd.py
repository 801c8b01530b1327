"""How drafts fare in a simulation: tokens per step by the number of sibling texts, as the paper measured them.

The figures are those of the paper's offline study (table 3 of arXiv 2511.14617v3: 20 groups, complete siblings). Here a
sibling counts by the share of the asker's own length that it has reached, since live siblings grow together.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias

from statepool.rollout.costs import StepTimes, accept_rate, expected_tokens, interpolate
from statepool.rollout.state import Job

__all__ = ["Speculation"]

Source: TypeAlias = Literal["self", "group"]

ACCEPTED: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0, 1.70), (1, 2.04), (5, 2.32), (15, 2.53)),
    2: ((0, 1.77), (1, 2.14), (5, 2.44), (15, 2.69)),
    4: ((0, 1.85), (1, 2.25), (5, 2.59), (15, 2.85)),
}
"""Paths per draft -> (siblings, tokens per step with the bonus token)."""
_MOST = 8


class Speculation:
    """Draft lengths and what they yield.

    Args:
        times: of a step.
        source: ``self`` drafts from the response's own text, ``group`` from all of its group.
    """

    def __init__(self, times: StepTimes, source: Source = "group") -> None:
        self._times = times
        self._source = source
        self._rates = {
            paths: [accept_rate(interpolate(points, n), _MOST) for n in range(17)] for paths, points in ACCEPTED.items()
        }
        self._budget = lru_cache(1 << 16)(self._best)

    def siblings(self, job: Job) -> float:
        """Sibling texts to draft from, each counted by how far it has come."""
        if self._source == "self":
            return 0.0
        own, found = max(job.generated, 1), 0.0
        for other in job.group.jobs:
            if other is not job:
                found += 1.0 if other.generated >= own else other.generated / own
        return found

    def budget(self, batch: int, tokens: float, siblings: float) -> tuple[int, int]:
        """Draft tokens per path and paths that yield the most tokens per second."""
        return self._budget(batch, round(tokens, -4), round(siblings))

    def tokens(self, siblings: float, drafts: int, paths: int) -> float:
        """Tokens per step."""
        rates = self._rates[paths]
        at = min(siblings, 15.0)
        low = int(at)
        rate = rates[low] + (rates[low + 1] - rates[low]) * (at - low)
        return expected_tokens(rate, drafts)

    def _best(self, batch: int, tokens: float, siblings: int) -> tuple[int, int]:
        found, best = 0.0, (0, 1)
        for paths in self._rates:
            for drafts in range(_MOST + 1):
                rows = batch * (1 + drafts * paths)
                rate = self.tokens(siblings, drafts, paths) / (self._times.rows(rows) + self._times.context * tokens)
                if rate > found * (1 + 1e-9):
                    found, best = rate, (drafts, paths)
        return best
