"""What the scheduler knows: jobs, their groups and the instances. Plain values, changed by ``Core`` alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["Group", "Instance", "Job", "State"]

Phase: TypeAlias = Literal["waiting", "running", "tool", "done"]


@dataclass(slots=True)
class Job:
    """One response under way.

    ``generated`` is what is known of it: exact while it waits, a lower bound while it runs.
    """

    number: int
    group: Group
    index: int
    prompt: int
    limit: int
    generated: int = 0
    phase: Phase = "waiting"
    at: int | None = None
    """The instance it runs on."""
    home: int | None = None
    """The instance that has its KV, or had it last."""
    reserved: int = 0
    chunks: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in its KV."""
        return self.prompt + self.generated

    @property
    def probe(self) -> bool:
        """Whether it is the first member of its group, whose length tells about the others."""
        return self.index == 0


@dataclass(slots=True)
class Group:
    """Responses to one prompt."""

    number: int
    jobs: list[Job] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Of its finished members, in order of their end."""
    longest: int = 0

    def alive(self) -> list[Job]:
        """Members that are not finished."""
        return [job for job in self.jobs if job.phase != "done"]


@dataclass(slots=True)
class Instance:
    """One engine: ``capacity`` tokens of KV, of which ``reserved`` are promised to the jobs that run there."""

    number: int
    capacity: int
    seats: int
    alive: bool = True
    reserved: int = 0
    running: dict[int, Job] = field(default_factory=dict)
    probes: int = 0
    """Probes among the running."""
    count: int = 0
    """How many run."""

    def fits(self, need: int) -> bool:
        """Whether one more chunk that needs ``need`` tokens can be promised its room."""
        return self.alive and self.count < self.seats and self.reserved + need <= self.capacity


@dataclass(slots=True)
class State:
    """All of it."""

    jobs: dict[int, Job] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    reserved: int = 0
    running: int = 0
    capacity: int = 0
    seats: int = 0
    """Sums over the instances that are up."""
    left: int = 0
    """Jobs that are not finished."""
    loads: list[tuple[int, int]] = field(default_factory=list)
    """How many jobs run on each instance that is up, and its number, in order."""
    refused: int = 1 << 62
    """A chunk that needs as much as this fits nowhere but, perhaps, on those with ``roomier``."""
    roomier: set[int] = field(default_factory=set)
    """Instances that have come up or given something back since that was found."""

    def load(self, instance: Instance, change: int) -> None:
        """``change`` more jobs run on an instance."""
        entry = (instance.count, instance.number)
        if instance.alive:
            del self.loads[bisect_left(self.loads, entry)]
            insort(self.loads, (instance.count + change, instance.number))
        instance.count += change

    def fitting(self, need: int) -> int | None:
        """The instance with the fewest jobs that has room for ``need`` tokens, the first of equals; None: none has."""
        if need >= self.refused:
            loads = sorted((self.instances[number].count, number) for number in self.roomier)
        else:
            loads = self.loads
        for _, number in loads:
            if self.instances[number].fits(need):
                return number
        self.refused = need
        self.roomier.clear()
        return None

    def up(self) -> list[Instance]:
        """Instances that take work."""
        return [instance for instance in self.instances if instance.alive]
