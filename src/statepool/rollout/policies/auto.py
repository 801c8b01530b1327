"""The default policy: one of several orders, chosen by looking ahead when the iteration begins.

``level`` serves whoever has the fewest tokens, which nothing that knows no lengths beats by much. ``remaining``
serves whoever may have most ahead: up to the length that one job in four iterations exceeds, by the posterior of its
group; so nobody who could still become the last is kept waiting, and since a posterior may be wrong about one, nobody
falls far behind. Until a job has told something it goes by level.
``leaders`` brings one member of every group far ahead first, then the longest group: siblings that follow find their
drafts written already. ``arrival`` is the order of submission.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from statepool.rollout.costs import StepTimes
from statepool.rollout.lengths import LengthPrior, Posterior
from statepool.rollout.policies.base import Policy
from statepool.rollout.policies.divided import Fcfs, Ordered
from statepool.rollout.state import Job

__all__ = ["ORDERS", "Auto", "order"]

ORDERS = ("remaining", "level", "leaders", "arrival")
_MOVED = 0.1
"""Change of a group's mean log length after which those who wait are ranked anew."""
_DOUBT = 0.9
"""Share of what is left to its limit that any job is given credit for: one that its group says nothing of, ten times as
long as its siblings, is never far behind when it shows."""
_TOLD = 2
"""Chunks after which a job ranks by what may lie ahead of it."""


class _Known(Ordered):
    """An order that keeps the posterior up to date; it may be shared with others that take turns."""

    def __init__(self, chunk: int, posterior: Posterior) -> None:
        super().__init__(chunk)
        self.posterior = posterior
        self._ranked: dict[int, float] = {}

    def enter(self, job: Job) -> None:
        """See ``Policy.enter``."""
        if job.generated:
            self.posterior.see(job, finished=False)
        super().enter(job)
        if job.generated:
            self._rank_again(job)

    def finished(self, job: Job) -> None:
        """See ``Policy.finished``."""
        self.posterior.see(job, finished=True)
        self._rank_again(job)

    def _rank_again(self, job: Job) -> None:
        group = job.group
        mean, _ = self.posterior.group(group)
        if abs(mean - self._ranked.get(group.number, 1e9)) < _MOVED:
            return
        self._ranked[group.number] = mean
        for other in group.jobs:
            if other.phase == "waiting" and other is not job:
                super().enter(other)


class Level(_Known):
    """Fewest tokens first."""

    def key(self, job: Job) -> int:
        """See ``Ordered.key``."""
        return job.generated

    def _rank_again(self, job: Job) -> None:
        """Tokens of others have not changed."""


class Leaders(_Known):
    """Probes first, shortest so far; then the group with the longest expectation, members in turn."""

    def key(self, job: Job) -> tuple[float, int]:
        """See ``Ordered.key``."""
        if job.probe:
            return (-1e9, job.generated)
        return (-self.posterior.group(job.group)[0], job.index)


class Remaining(_Known):
    """Most that may lie ahead first; while seats and not memory are short, those with most KV: both are used then."""

    def __init__(self, chunk: int, posterior: Posterior, total: int) -> None:
        super().__init__(chunk, posterior)
        self._deep: list[tuple[int, int, int]] = []
        self._from_deep = False
        self._quantile = 1 - 1 / (4 * max(total, 4))

    def key(self, job: Job) -> tuple[int, float]:
        """See ``Ordered.key``."""
        if job.generated < _TOLD * self.chunk:
            return (0, job.generated)
        return (1, -max(self.posterior.remaining(job, self._quantile), _DOUBT * (job.limit - job.generated)))

    def enter(self, job: Job) -> None:
        """See ``Policy.enter``."""
        super().enter(job)
        heappush(self._deep, (-job.generated, job.number, job.chunks))

    def next(self) -> Job | None:
        """See ``Policy.next``."""
        if self._seats_short():
            while self._deep:
                _, number, chunks = self._deep[0]
                job = self.state.jobs[number]
                if job.phase == "waiting" and job.chunks == chunks:
                    self._from_deep = True
                    return job
                heappop(self._deep)
        self._from_deep = False
        return super().next()

    def take(self, job: Job) -> None:
        """See ``Policy.take``."""
        if self._from_deep:
            heappop(self._deep)
            self._stamp[job.number] += 1
        else:
            super().take(job)

    def _seats_short(self) -> bool:
        state = self.state
        return state.reserved * state.seats < state.running * state.capacity


def order(name: str, chunk: int, posterior: Posterior, total: int) -> Policy:
    """One of ``ORDERS``; ``total`` jobs are in the iteration."""
    makers: dict[str, Callable[[], Policy]] = {
        "remaining": lambda: Remaining(chunk, posterior, total),
        "level": lambda: Level(chunk, posterior),
        "leaders": lambda: Leaders(chunk, posterior),
        "arrival": lambda: Fcfs(chunk),
    }
    return makers[name]()


class Auto(Policy):
    """The order that a look ahead finds best.

    Args:
        chunk: tokens of a chunk.
        times: of a step, for looking ahead; None takes ``first`` and keeps it.
        prior: of lengths, fitted to the iteration before; None: nothing is known.
        drafts: where drafts come from, which matters to the order; None without.
        first: the order without a look ahead.
    """

    name = "auto"
    even = 4  # the last jobs end sooner on engines with equal loads

    def __init__(
        self,
        chunk: int,
        *,
        times: StepTimes | None = None,
        prior: LengthPrior | None = None,
        drafts: str | None = None,
        first: str = "remaining",
    ) -> None:
        super().__init__(chunk)
        self._times, self._prior, self._drafts, self._first = times, prior, drafts, first
        self.posterior: Posterior | None = None
        self.order = ""
        """The order in force."""
        self._inner: Policy | None = None
        self._pending: list[Job] = []

    def enter(self, job: Job) -> None:
        """See ``Policy.enter``."""
        if self._inner is None:
            self._pending.append(job)
        else:
            self._inner.enter(job)

    def next(self) -> Job | None:
        """See ``Policy.next``."""
        if self._inner is None and self._pending:
            self._choose()
        return None if self._inner is None else self._inner.next()

    def take(self, job: Job) -> None:
        """See ``Policy.take``."""
        assert self._inner is not None
        self._inner.take(job)

    def finished(self, job: Job) -> None:
        """See ``Policy.finished``."""
        if self._inner is not None:
            self._inner.finished(job)

    def _choose(self) -> None:
        """Take an order, and let it have all that waits."""
        most = max(job.limit for job in self.state.jobs.values())
        self.posterior = Posterior(self._prior or LengthPrior.vague(most))
        self.order = self._best()
        self._inner = order(self.order, self.chunk, self.posterior, len(self.state.jobs))
        self._inner.begin(self.state)
        for job in self._pending:
            self._inner.enter(job)
        self._pending.clear()

    def _best(self) -> str:
        if self._times is None:
            return self._first
        from statepool.rollout.policies.foresight import Foresight

        assert self.posterior is not None
        prior, total = self.posterior.prior, len(self.state.jobs)

        def make(name: str, chunk: int) -> Any:
            # The rank of a job is that of the whole iteration, however few of its jobs are played.
            return order(name, chunk, Posterior(prior), total)

        foresight = Foresight(self._times, make, self._drafts)
        return foresight.best(ORDERS, self.state, self.posterior, self.chunk)
