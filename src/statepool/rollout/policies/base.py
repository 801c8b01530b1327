"""What a policy is, and where a chunk goes: the cache-aware rule of Seer's OSDI'26 version (section 3.3)."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from statepool.rollout.state import Instance, Job, State

__all__ = ["DraftPlanner", "InTurn", "Policy", "least_loaded", "select_instance"]


class DraftPlanner(Protocol):
    """How many draft tokens an instance verifies per sequence and step."""

    def plan(self, instance: Instance, probes: int, rest: int) -> tuple[int, int, int]:
        """Draft tokens of probes, of all others, and paths per draft."""
        ...


class Policy:
    """Which waiting job goes next, and to which instance. Subclasses say how.

    ``divided`` policies hand out chunks under reservations; the others hand out whole responses at once and leave
    memory to the engines, which preempt when it runs short.
    """

    name = ""
    divided = True
    even = 32
    """Jobs in flight by which instances may differ before load goes before the place of the KV; the paper's number."""

    def __init__(self, chunk: int = 2048) -> None:
        self.chunk = chunk
        self.state = State()

    def begin(self, state: State) -> None:
        """The state to decide on, before anything is in it."""
        self.state = state

    def enter(self, job: Job) -> None:
        """``job`` waits from now on."""
        raise NotImplementedError

    def next(self) -> Job | None:
        """The job to place now, if one waits; it keeps waiting until ``take``."""
        raise NotImplementedError

    def take(self, job: Job) -> None:
        """``job``, which ``next`` named, has been placed."""
        raise NotImplementedError

    def finished(self, job: Job) -> None:
        """``job`` is complete."""

    def surplus(self) -> list[Job]:
        """Jobs whose responses are not wanted any more."""
        return []

    def chunk_of(self, job: Job) -> int:
        """Tokens of its next chunk."""
        return min(self.chunk, job.limit - job.generated) if self.divided else job.limit - job.generated

    def place(self, job: Job, need: int) -> int | None:
        """The instance for a chunk that needs ``need`` tokens of KV; None: none has room now.

        Where the KV lies while loads are even, else where the fewest jobs run.
        """
        state = self.state
        if job.home is not None and state.instances[job.home].fits(need) and _spread(state.loads) <= self.even:
            return job.home
        return state.fitting(need)


class InTurn(Policy):
    """Whoever has waited longest goes next."""

    def __init__(self, chunk: int = 2048) -> None:
        super().__init__(chunk)
        self._waiting: deque[Job] = deque()

    def enter(self, job: Job) -> None:
        """See ``Policy.enter``."""
        self._waiting.append(job)

    def next(self) -> Job | None:
        """See ``Policy.next``."""
        return self._waiting[0] if self._waiting else None

    def take(self, job: Job) -> None:
        """See ``Policy.take``."""
        self._waiting.popleft()


def select_instance(instances: list[Instance], job: Job, need: int, even: int) -> int | None:
    """The rule of ``Policy.place`` among some of the instances."""
    loads = sorted((instance.count, instance.number) for instance in instances if instance.alive)
    fitting = [instance for instance in instances if instance.fits(need)]
    if _spread(loads) <= even and any(instance.number == job.home for instance in fitting):
        return job.home
    return min(fitting, key=lambda instance: (instance.count, instance.number)).number if fitting else None


def _spread(loads: list[tuple[int, int]]) -> int:
    return loads[-1][0] - loads[0][0] if loads else 0


def least_loaded(instances: list[Instance]) -> int | None:
    """The instance with the fewest jobs; the first of equals; None if all are gone."""
    up = [instance for instance in instances if instance.alive]
    return min(up, key=lambda instance: (len(instance.running), instance.number)).number if up else None
