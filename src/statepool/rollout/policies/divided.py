"""Divided rollout with simple orders: round robin, arrival, Seer's printed rule, and the oracle that knows lengths."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from statepool.rollout.policies.base import InTurn, Policy
from statepool.rollout.state import Job

__all__ = ["Fcfs", "Lrpt", "Ordered", "RoundRobin", "SeerPaper"]


class RoundRobin(InTurn):
    """A chunk each in turn: whoever has ended a chunk waits behind all others."""

    name = "divided_rr"


class Ordered(Policy):
    """The waiting job with the smallest ``key``; equals in order of submission."""

    def __init__(self, chunk: int = 2048) -> None:
        super().__init__(chunk)
        self._heap: list[tuple[Any, int, int]] = []
        self._stamp: dict[int, int] = {}

    def key(self, job: Job) -> Any:
        """What orders the jobs."""
        raise NotImplementedError

    def enter(self, job: Job) -> None:
        """See ``Policy.enter``."""
        stamp = self._stamp[job.number] = self._stamp.get(job.number, 0) + 1
        heappush(self._heap, (self.key(job), job.number, stamp))

    def next(self) -> Job | None:
        """See ``Policy.next``."""
        while self._heap:
            _, number, stamp = self._heap[0]
            if self._stamp[number] == stamp:
                return self.state.jobs[number]
            heappop(self._heap)  # its key has changed since
        return None

    def take(self, job: Job) -> None:
        """See ``Policy.take``."""
        heappop(self._heap)
        self._stamp[job.number] += 1


class Fcfs(Ordered):
    """In order of submission."""

    name = "divided_fcfs"

    def key(self, job: Job) -> int:
        """See ``Ordered.key``."""
        return job.number


class Lrpt(Ordered):
    """Longest remaining first, with lengths that nobody can know: the bound for all others.

    Args:
        length: gives the true length of a job by its number.
    """

    name = "lrpt_oracle"

    def __init__(self, length: Callable[[int], int], chunk: int = 2048) -> None:
        super().__init__(chunk)
        self._length = length

    def key(self, job: Job) -> int:
        """See ``Ordered.key``."""
        return job.generated - self._length(job.number)


class SeerPaper(Ordered):
    """Algorithm 2 as printed: probes first, shortest so far; then the group with the longest estimate.

    A group's estimate is the limit until a member ends, then the longest ended member. Equals in order of submission.
    """

    name = "seer_paper"

    def key(self, job: Job) -> tuple[int, int]:
        """See ``Ordered.key``."""
        if job.probe:
            return (0, job.generated)
        return (1, -(job.group.longest or job.limit))

    def finished(self, job: Job) -> None:
        """The estimate of its group may have changed."""
        if len(job.group.lengths) > 1 and job.group.longest > job.generated:
            return
        for other in job.group.jobs:
            if other.phase == "waiting" and not other.probe:
                self.enter(other)
