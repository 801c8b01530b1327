"""What can be known of a response's length: a posterior over its group's mean, learnt as members grow and end.

Log lengths are normal around their group's mean, and these around the mean of all. A finished member is an observation;
one that has come to ``x`` tokens without an end says that its length is above ``x``: it counts by the information that
holds (a Newton step on the censored likelihood), so a group none of whose members ends early is soon known to be long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from statepool.rollout.state import Group, Job

__all__ = ["LengthPrior", "Posterior"]

_STANDARD = NormalDist()
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class LengthPrior:
    """Mean of log length, its standard deviation between groups and within one. One iteration's fit serves the next."""

    mean: float
    between: float
    within: float

    @classmethod
    def fit(cls, groups: Sequence[Sequence[int]]) -> LengthPrior:
        """From the lengths of a finished iteration: moments of a one-way analysis of variance."""
        logs = [np.log(np.maximum(np.array(group, float), 1.0)) for group in groups if len(group)]
        total = sum(len(group) for group in logs)
        mean = float(np.concatenate(logs).mean())
        within = sum(float(((group - group.mean()) ** 2).sum()) for group in logs) / max(total - len(logs), 1)
        between = float(np.mean([(group.mean() - mean) ** 2 - within / len(group) for group in logs]))
        return cls(mean, math.sqrt(max(between, 1e-4)), math.sqrt(max(within, 1e-4)))

    @classmethod
    def vague(cls, limit: int) -> LengthPrior:
        """Before anything is known: a fifth of the limit, give or take a factor of three, half of it the group's."""
        return cls(math.log(max(limit / 5, 2.0)), 0.8, 0.8)


class _Learnt:
    """What the members of one group have told: its weight, their weighted log lengths, the mean it makes likely."""

    __slots__ = ("mean", "total", "weight")

    def __init__(self, mean: tuple[float, float]) -> None:
        self.weight = self.total = 0.0
        self.mean = mean


class Posterior:
    """Means of all groups, kept up to date one job at a time."""

    def __init__(self, prior: LengthPrior) -> None:
        self.prior = prior
        self._groups: dict[int, _Learnt] = {}
        self._shares: dict[int, tuple[float, float]] = {}
        self._own = 1.0 / prior.between**2
        self._inner = 1.0 / prior.within**2
        self._unseen = (prior.mean, prior.between**2)

    def group(self, group: Group) -> tuple[float, float]:
        """Mean and variance of a group's mean log length."""
        learnt = self._groups.get(group.number)
        return self._unseen if learnt is None else learnt.mean

    def see(self, job: Job, *, finished: bool) -> None:
        """``job`` has ``generated`` tokens, and has ended or not."""
        learnt = self._groups.get(job.group.number)
        if learnt is None:
            learnt = self._groups[job.group.number] = _Learnt(self._unseen)
        weight, value = self._shares.get(job.number, (0.0, 0.0))
        learnt.weight -= weight
        learnt.total -= weight * value
        log = math.log(max(job.generated, 1))
        if finished and job.generated < job.limit:
            weight, value = 1.0, log
        else:
            mean = self._mean(learnt)[0]
            scale = self.prior.within
            at = (log - mean) / scale
            hazard = _hazard(at)
            weight = min(max(hazard * (hazard - at), _TINY), 1.0)
            value = mean + scale * hazard / weight
        self._shares[job.number] = (weight, value)
        learnt.weight += weight
        learnt.total += weight * value
        learnt.mean = self._mean(learnt)

    def _mean(self, learnt: _Learnt) -> tuple[float, float]:
        precision = self._own + learnt.weight * self._inner
        return (self._own * self.prior.mean + learnt.total * self._inner) / precision, 1.0 / precision

    def remaining(self, job: Job, quantile: float) -> float:
        """Tokens that ``job`` will not exceed with chance ``quantile``, given that it has not ended yet."""
        mean, variance = self.group(job.group)
        return self._beyond(job, mean, math.sqrt(variance + self.prior.within**2), quantile)

    def draw(self, job: Job, member: float, group: float) -> float:
        """Tokens ahead of ``job`` at quantile ``group`` of its group's mean and ``member`` of its own length there.

        With one ``group`` for all members they resemble one another as they are expected to.
        """
        mean, variance = self.group(job.group)
        likely = mean + math.sqrt(variance) * _STANDARD.inv_cdf(min(max(group, 1e-9), 1 - 1e-9))
        return self._beyond(job, likely, self.prior.within, member)

    def _beyond(self, job: Job, mean: float, scale: float, quantile: float) -> float:
        at = (math.log(max(job.generated, 1)) - mean) / scale
        beyond = (1.0 - quantile) * 0.5 * math.erfc(at / math.sqrt(2.0))
        z = -_STANDARD.inv_cdf(beyond) if beyond > 1e-300 else at
        length = math.exp(min(mean + scale * z, 60.0))
        return min(max(length, job.generated + 1.0), float(job.limit)) - job.generated


def _hazard(at: float) -> float:
    """Density over survival of the standard normal."""
    if at > 25:
        return at + 1 / at
    return math.exp(-at * at / 2) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(at / math.sqrt(2)))
