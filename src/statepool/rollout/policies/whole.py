"""Whole responses on one engine from start to end: how veRL places them, by group and by request.

An engine queues what it is given and preempts when its KV runs short; these are the baselines of every comparison.
"""

from __future__ import annotations

from random import Random

from statepool.rollout.policies.base import InTurn, least_loaded
from statepool.rollout.state import Job

__all__ = ["Partial", "VerlGroup", "VerlRequest"]


class VerlGroup(InTurn):
    """All members of a group on one engine, groups dealt in turn: veRL as Seer's paper compares with it."""

    name = "verl_group"
    divided = False

    def __init__(self, chunk: int = 0) -> None:
        super().__init__(chunk)

    def place(self, job: Job, need: int) -> int | None:
        """The engine of its group; the next one if that is gone."""
        up = self.state.up()
        if not up:
            return None
        own = self.state.instances[job.group.number % len(self.state.instances)]
        return own.number if own.alive else up[job.group.number % len(up)].number


class VerlRequest(VerlGroup):
    """Each request on the engine with the fewest in flight, where it stays; ties at random: veRL 0.9."""

    name = "verl_request"

    def __init__(self, chunk: int = 0, seed: int = 0) -> None:
        super().__init__(chunk)
        self._random = Random(seed)

    def place(self, job: Job, need: int) -> int | None:
        """See ``Policy.place``."""
        first = least_loaded(self.state.instances)
        if first is None:
            return None
        fewest = len(self.state.instances[first].running)
        ties = [instance.number for instance in self.state.up() if len(instance.running) == fewest]
        return self._random.choice(ties)


class Partial(VerlRequest):
    """Over-sampling: the iteration ends when half of the groups are complete, and the rest is aborted (APRIL).

    Ask for twice the groups you need. Not strict: short groups are preferred, and what is aborted is not in the answer.
    """

    name = "partial"

    def surplus(self) -> list[Job]:
        """Jobs to abort, once enough groups are complete."""
        groups = self.state.groups.values()
        complete = sum(all(job.phase == "done" for job in group.jobs) for group in groups)
        if 2 * complete < len(groups):
            return []
        return [job for group in groups for job in group.jobs if job.phase != "done"]
