"""What the scheduler knows: jobs, their groups and the instances. Plain values, changed by ``Core`` alone."""

from __future__ import annotations

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

    def up(self) -> list[Instance]:
        """Instances that take work."""
        return [instance for instance in self.instances if instance.alive]
