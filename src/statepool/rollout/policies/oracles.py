"""Placement by length: StreamRL's dispatch, which is given all lengths, and TailSieve's isolation of the longest.

StreamRL (arXiv 2504.15930) keeps the longest fifth of the groups on engines of their own, as many as make both parts
end together, longest first. TailSieve routes the requests expected longest to engines with small batches.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop

from statepool.rollout.costs import StepTimes
from statepool.rollout.lengths import LengthPrior, Posterior
from statepool.rollout.policies.base import Policy, select_instance
from statepool.rollout.policies.divided import Ordered
from statepool.rollout.state import Instance, Job

__all__ = ["StreamRL", "TailIsolate"]

_LONG = 0.2
"""Share of the groups that count as long."""


class StreamRL(Policy):
    """Whole responses with known lengths, the long groups apart; engines queue and preempt as for veRL's rules.

    Args:
        length: true length of a job.
        times: of a step.
    """

    name = "streamrl_oracle"
    divided = False

    def __init__(self, length: Callable[[int], int], times: StepTimes) -> None:
        super().__init__(1)
        self._length, self._times = length, times
        self._heap: list[tuple[int, int]] = []
        self._new: list[Job] = []
        self._long: set[int] = set()
        self._split = 0

    def enter(self, job: Job) -> None:
        """See ``Policy.enter``."""
        self._new.append(job)

    def next(self) -> Job | None:
        """See ``Policy.next``."""
        if self._new:
            self._divide()
            self._heap += [(-self._length(job.number), job.number) for job in self._new]
            heapify(self._heap)
            self._new = []
        return self.state.jobs[self._heap[0][1]] if self._heap else None

    def take(self, job: Job) -> None:
        """See ``Policy.take``."""
        heappop(self._heap)

    def place(self, job: Job, need: int) -> int | None:
        """The engine of its part with the fewest jobs."""
        up = self.state.up()
        if not up:
            return None
        split = min(self._split, len(up) - 1)
        part = up[:split] if job.group.number in self._long and split else up[split:]
        return min(part, key=lambda instance: (len(instance.running), instance.number)).number

    def _divide(self) -> None:
        """Which groups are long, and how many engines they get."""
        groups = list(self.state.groups.values())
        mean = {g.number: sum(self._length(job.number) for job in g.jobs) / len(g.jobs) for g in groups}
        falling = sorted(groups, key=lambda g: -mean[g.number])
        long = falling[: max(round(_LONG * len(groups)), 1)]
        self._long = {g.number for g in long}
        lengths = sorted(self._length(job.number) for g in groups for job in g.jobs)
        high, low = lengths[int(0.9 * (len(lengths) - 1))], lengths[len(lengths) // 2]
        count = len(self.state.up())
        jobs_long = sum(len(g.jobs) for g in long)
        jobs_rest = sum(len(g.jobs) for g in groups) - jobs_long

        def latency(split: int) -> float:
            rest = self._times.rows(jobs_rest / (count - split)) * low
            return self._times.rows(jobs_long / split) * high + rest

        self._split = min(range(1, count), key=latency) if count > 1 else 0


class TailIsolate(Ordered):
    """Chunks in order of submission, but a part of the engines serves the groups with the longest expectation alone.

    An eighth of the engines, and at least one of several; they take others only when no such job waits.
    """

    name = "tail_isolate"

    def __init__(self, chunk: int, prior: LengthPrior | None = None) -> None:
        super().__init__(chunk)
        self._prior = prior
        self._posterior: Posterior | None = None

    def key(self, job: Job) -> tuple[int, int]:
        """See ``Ordered.key``."""
        return (0 if self._is_long(job) else 1, job.number)

    def enter(self, job: Job) -> None:
        """See ``Policy.enter``."""
        if self._posterior is None:
            self._posterior = Posterior(self._prior or LengthPrior.vague(job.limit))
        if job.generated:
            self._posterior.see(job, finished=False)
        super().enter(job)

    def finished(self, job: Job) -> None:
        """See ``Policy.finished``."""
        assert self._posterior is not None
        self._posterior.see(job, finished=True)

    def place(self, job: Job, need: int) -> int | None:
        """An engine of its part; of the other if that has no room."""
        instances = self.state.instances
        apart = max(len(instances) // 8, 1) if len(instances) > 1 else 0
        parts: tuple[list[Instance], list[Instance]] = (instances[:apart], instances[apart:])
        own, other = parts if self._is_long(job) else parts[::-1]
        found = select_instance(own, job, need, self.even) if own else None
        return select_instance(other, job, need, self.even) if found is None else found

    def _is_long(self, job: Job) -> bool:
        assert self._posterior is not None
        prior = self._posterior.prior
        return self._posterior.group(job.group)[0] > prior.mean + prior.between
