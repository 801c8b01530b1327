"""The scheduler of a rollout as a pure state machine: events in, decisions out; no clock, no thread, no I/O.

One object drives the live engines and the simulator, and a recorded list of events gives the same decisions again.
Divided rollout (Seer, arXiv 2511.14617, section 3.2): a chunk is placed only where its whole KV fits beside what is
promised already, so an engine never has to preempt. The end of a chunk, a tool call and a preemption are one
operation: the job leaves with its KV in the pool and waits to be placed again.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from statepool.core.errors import InvalidRequest
from statepool.rollout.events import (
    Abort,
    ChunkDone,
    Decision,
    Dispatch,
    Draft,
    Event,
    Finished,
    Free,
    InstanceJoined,
    InstanceLost,
    Progress,
    Submit,
    ToolReturn,
    ToolWait,
)
from statepool.rollout.policies.base import DraftPlanner, Policy
from statepool.rollout.state import Group, Instance, Job, State

__all__ = ["Core"]

_CHANGE = 0.1
"""Draft lengths are planned anew when the batch of an instance has changed by more than this share."""


class Core:
    """State of one iteration and what to do next.

    Args:
        policy: which job goes next and where.
        planner: how many draft tokens to verify; None makes no such decisions.
        block: tokens of a KV block; reservations are whole blocks.
    """

    def __init__(self, policy: Policy, planner: DraftPlanner | None = None, block: int = 1) -> None:
        self.state = State()
        self.policy = policy
        self._planner = planner
        self._block = block
        self._planned: dict[int, tuple[int, int]] = {}
        self._drafts: dict[int, Draft] = {}
        self._touched: set[int] = set()
        self.decisions = 0
        """Dispatches so far."""
        policy.begin(self.state)

    def on_event(self, *events: Event) -> list[Decision]:
        """Take in events of one moment, then decide. Deterministic.

        Raises:
            InvalidRequest: an event that contradicts what is known, such as the end of a job that does not run.
        """
        out: list[Decision] = []
        for event in events:
            self._take(event, out)
        self._drop_surplus(out)
        self._place(out)
        if self._planner is not None:
            self._plan_drafts(out)
        return out

    def resume(self, events: Iterable[Event]) -> None:
        """Take in events without deciding: a journal is read, its decisions were carried out long ago."""
        for event in events:
            self._take(event, [])

    # -- events ----------------------------------------------------------------------------------------

    def _take(self, event: Event, out: list[Decision]) -> None:
        match event:
            case ChunkDone(number, generated):
                job = self._leave(number, generated)
                job.phase = "waiting"
                self.policy.enter(job)
            case Finished(number, generated):
                job = self._job(number)
                if job.phase == "tool":  # the world had the last word
                    job.generated = generated
                else:
                    self._leave(number, generated)
                job.phase = "done"
                job.group.lengths.append(generated)
                job.group.longest = max(job.group.longest, generated)
                self.state.left -= 1
                out.append(Free(number))
                self.policy.finished(job)
            case Progress(number, generated):
                job = self._job(number)
                job.generated = max(job.generated, generated)
            case Submit():
                self._submit(event)
            case ToolWait(number, generated):
                self._leave(number, generated).phase = "tool"
            case ToolReturn(number, tokens):
                job = self._job(number)
                if job.phase != "tool":
                    raise InvalidRequest(f"job {number} waits for no tool", param="job")
                job.prompt += tokens
                job.phase = "waiting"
                self.policy.enter(job)
            case InstanceJoined(number, capacity, seats):
                self._join(number, capacity, seats)
            case InstanceLost(number, generated):
                self._lose(number, dict(generated))

    def _submit(self, event: Submit) -> None:
        if event.job in self.state.jobs:
            raise InvalidRequest(f"job {event.job} is here already", param="job")
        group = self.state.groups.setdefault(event.group, Group(event.group))
        job = Job(event.job, group, event.index, event.prompt, event.limit, event.generated)
        group.jobs.append(job)
        self.state.jobs[event.job] = job
        self.state.left += 1
        self.policy.enter(job)

    def _leave(self, number: int, generated: int) -> Job:
        job = self._job(number)
        if job.phase != "running" or job.at is None:
            raise InvalidRequest(f"job {number} does not run", param="job")
        instance = self.state.instances[job.at]
        del instance.running[number]
        self.state.load(instance, -1)
        instance.reserved -= job.reserved
        instance.probes -= job.probe
        self.state.reserved -= job.reserved
        self.state.running -= 1
        self._touched.add(instance.number)
        self.state.roomier.add(instance.number)
        job.home, job.at, job.reserved, job.generated = job.at, None, 0, generated
        return job

    def _join(self, number: int, capacity: int, seats: int) -> None:
        instances = self.state.instances
        if number == len(instances):
            instances.append(Instance(number, capacity, seats))
        elif number < len(instances) and not instances[number].alive:
            instances[number] = Instance(number, capacity, seats)
        else:
            raise InvalidRequest(f"instance {number} is here already, or joins before its turn", param="instance")
        insort(self.state.loads, (0, number))
        self.state.roomier.add(number)
        self.state.capacity += capacity
        self.state.seats += seats
        self._touched.add(number)
        self._planned.pop(number, None)
        self._drafts.pop(number, None)

    def _lose(self, number: int, generated: dict[int, int]) -> None:
        instance = self.state.instances[number]
        if not instance.alive:
            raise InvalidRequest(f"instance {number} is lost already", param="instance")
        instance.alive = False
        self.state.loads.remove((instance.count, number))
        self.state.capacity -= instance.capacity
        self.state.seats -= instance.seats
        for job in list(instance.running.values()):
            self._leave(job.number, max(job.generated, generated.get(job.number, 0)))
            job.phase = "waiting"
            self.policy.enter(job)
        for job in self.state.jobs.values():
            if job.home == number:
                job.home = None

    def _job(self, number: int) -> Job:
        job = self.state.jobs.get(number)
        if job is None:
            raise InvalidRequest(f"there is no job {number}", param="job")
        return job

    # -- decisions -------------------------------------------------------------------------------------

    def _drop_surplus(self, out: list[Decision]) -> None:
        """Abort what the policy does not want any more; it counts as done and has no length."""
        for job in self.policy.surplus():
            if job.at is not None:
                out.append(Abort(job.number, job.at))
                self._leave(job.number, job.generated)
            job.phase = "done"
            self.state.left -= 1

    def _place(self, out: list[Decision]) -> None:
        policy, instances = self.policy, self.state.instances
        while (job := policy.next()) is not None:
            tokens = policy.chunk_of(job)
            need = -(-(job.tokens + tokens) // self._block) * self._block if policy.divided else 0
            number = policy.place(job, need)
            if number is None:
                break
            policy.take(job)
            instance = instances[number]
            instance.running[job.number] = job
            self.state.load(instance, 1)
            instance.reserved += need
            instance.probes += job.probe
            self.state.reserved += need
            self.state.running += 1
            job.phase, job.at, job.reserved = "running", number, need
            job.chunks += 1
            self._touched.add(number)
            self.decisions += 1
            out.append(Dispatch(job.number, number, tokens, job.home))

    def _plan_drafts(self, out: list[Decision]) -> None:
        assert self._planner is not None
        for number in sorted(self._touched):
            instance = self.state.instances[number]
            probes, rest = instance.probes, len(instance.running) - instance.probes
            before = self._planned.get(number)
            if before is not None and abs(probes + rest - sum(before)) <= _CHANGE * sum(before):
                continue
            self._planned[number] = (probes, rest)
            decision = Draft(number, *self._planner.plan(instance, probes, rest))
            if decision != self._drafts.get(number):
                self._drafts[number] = decision
                out.append(decision)
        self._touched.clear()
