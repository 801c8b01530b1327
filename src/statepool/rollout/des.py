"""A rollout that is not there: a discrete-event simulation that drives the very scheduler of the live engines.

Between two events the batch of an instance does not change, so any number of steps is one formula. Arrivals join at
the next step. An instance without reservations admits in order while its KV fits and preempts the last it admitted
when memory runs short, as an engine does; what was preempted is computed again later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from statepool.core.errors import InvalidConfig
from statepool.kv.layout import BLOCK_SIZE
from statepool.rollout.core import Core
from statepool.rollout.costs import StepTimes
from statepool.rollout.events import Abort, ChunkDone, Decision, Dispatch, Event, Finished, InstanceJoined, Submit
from statepool.rollout.groups import ChunkRecord
from statepool.rollout.paged import PagedInstance
from statepool.rollout.policies.base import Policy
from statepool.rollout.sd import Speculation

__all__ = ["Outcome", "Run", "Simulation", "Wanted", "simulate"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A response of a simulated iteration; ``length`` is hidden from every policy but an oracle."""

    group: int
    index: int
    prompt: int
    limit: int
    length: int
    keys: tuple[bytes, ...] = ()
    """Of its blocks, where the text is known: siblings that begin alike share more than their prompt."""


@dataclass(slots=True)
class Outcome:
    """What came of a simulated iteration. Seconds, tokens, counts."""

    seconds: float = 0.0
    tokens: int = 0
    ends: list[float] = field(default_factory=list)
    preemptions: int = 0
    recomputed: int = 0
    moved: int = 0
    """Tokens of KV that went from one instance to another."""
    decisions: int = 0
    steps: int = 0
    chunks: list[list[ChunkRecord]] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        """Output tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tail(self) -> float:
        """Seconds after nine tenths of the responses had ended."""
        ends = sorted(self.ends)
        return self.seconds - ends[math.ceil(0.9 * len(ends)) - 1] if ends else 0.0


class Run:
    """A job in a batch or in the queue of an instance: from ``start`` tokens until it has ``goal``."""

    __slots__ = ("began", "first", "goal", "job", "order", "rate", "rows", "siblings", "start")

    def __init__(self, job: int, start: int, goal: int) -> None:
        self.job, self.start, self.goal = job, start, goal
        self.order = self.first = 0
        self.began = self.siblings = 0.0
        self.rate = self.rows = 1.0

    def reached(self, step: int) -> float:
        """Tokens at ``step``, as a number that grows evenly."""
        return self.start + (step - self.first) * self.rate

    @property
    def until(self) -> int:
        """The step with which it reaches its goal."""
        return self.first + max(math.ceil((self.goal - self.start) / self.rate - 1e-9), 1)


class _Instance:
    """One engine: its batch, its queue, and its clock at the last step that is accounted for."""

    def __init__(self, number: int, world: Simulation) -> None:
        self.number, self.world = number, world
        self.now, self.step = 0.0, 0
        self.batch: dict[int, Run] = {}
        self.queue: deque[Run] = deque()
        self.version = 0
        self._ending: list[tuple[int, int]] = []
        self._tokens = self._growth = self._rows = self._siblings = 0.0
        self._planned = 0
        self._drafts = (0, 1)
        self._choked = False
        """It preempted in the last step, so nobody is admitted before the next."""

    def next_event(self, at: float) -> float | None:
        """When something happens here next, or None; ``at`` is the time now."""
        if not self.batch:
            if not self.queue:
                return None
            self.now, self._planned = max(self.now, at), 0
            return self.now
        world = self.world
        steps = self._ending[0][0] - self.step
        if not world.reserves:
            steps = min(steps, max(int((world.capacity - self._tokens) / self._growth) + 1, 1))
        if self.queue and self._fits(self.queue[0]):
            least = world.times.steps_within(at - self.now, self._rows, self._tokens, self._growth)
            steps = min(steps, max(least, 1) if self._choked else least)
        self._planned = steps
        return self.now + world.times.span(steps, self._rows, self._tokens, self._growth)

    def advance(self, at: float) -> list[Run]:
        """Let the planned steps pass; the runs that have reached their goal."""
        self.step += self._planned
        self.world.outcome.steps += self._planned
        self._tokens += self._planned * self._growth
        self.now = at
        done = []
        while self._ending and self._ending[0][0] <= self.step:
            _, job = heappop(self._ending)
            run = self.batch[job]
            done.append(run)
            self._drop(run, run.goal)
        return done

    def abort(self, job: int) -> None:
        """Drop a job from the batch or the queue."""
        run = self.batch.get(job)
        self.queue = deque(each for each in self.queue if each.job != job)
        if run is not None:
            self._drop(run, min(int(run.reached(self.step) + 1e-9), run.goal))
            self._ending = [entry for entry in self._ending if entry[1] != job]
            heapify(self._ending)

    def settle(self) -> None:
        """Between two steps: preempt what does not fit, admit what does, choose draft lengths."""
        world = self.world
        self._choked = False
        while not world.reserves and len(self.batch) > 1 and self._tokens > world.capacity:
            self._preempt(max(self.batch.values(), key=lambda run: run.order))
            self._choked = True
        fresh, prefill = [], 0
        while self.queue and not self._choked and self._fits(self.queue[0]):
            run = self.queue.popleft()
            prefill += self._admit(run)
            fresh.append(run)
        if world.speculation is not None and self.batch:
            self._pace(fresh)
        for run in fresh:
            heappush(self._ending, (run.until, run.job))
        if prefill:
            self.now += world.times.prefill_seconds(prefill)

    def _admit(self, run: Run) -> int:
        """Take a job into the batch; how many tokens of it must be computed before its next one."""
        world = self.world
        tokens = world.wanted[run.job].prompt + run.start
        cold, world.cold[run.job] = world.cold[run.job], True
        world.outcome.recomputed += run.start if cold else 0
        world.orders += 1
        run.order, run.first, run.began = world.orders, self.step, self.now
        run.rate = run.rows = 1.0
        self.batch[run.job] = run
        self._tokens += tokens
        self._growth += 1.0
        self._rows += 1.0
        if world.speculation is not None:
            run.siblings = world.speculation.siblings(world.core.state.jobs[run.job])
            self._siblings += run.siblings
        return tokens if cold else 0

    def _preempt(self, run: Run) -> None:
        have = min(int(run.reached(self.step) + 1e-9), run.goal)
        self._drop(run, have)
        self._ending = [entry for entry in self._ending if entry[1] != run.job]
        heapify(self._ending)
        run.start = have
        self.queue.appendleft(run)
        self.world.outcome.preemptions += 1

    def _pace(self, fresh: list[Run]) -> None:
        speculation = self.world.speculation
        assert speculation is not None
        drafts = speculation.budget(len(self.batch), self._tokens, self._siblings / len(self.batch))
        changed = drafts != self._drafts
        self._drafts = drafts
        for run in self.batch.values() if changed else fresh:
            run.start, run.first = run.reached(self.step), self.step  # type: ignore[assignment]
            rate, rows = speculation.tokens(run.siblings, *drafts), 1.0 + drafts[0] * drafts[1]
            self._growth += rate - run.rate
            self._rows += rows - run.rows
            run.rate, run.rows = rate, rows
        if changed:
            new = {run.job for run in fresh}
            self._ending = [(run.until, run.job) for run in self.batch.values() if run.job not in new]
            heapify(self._ending)

    def _fits(self, run: Run) -> bool:
        world = self.world
        if len(self.batch) >= world.seats:
            return False
        need = world.wanted[run.job].prompt + run.start + 1
        return world.reserves or not self.batch or self._tokens + need + len(self.batch) <= world.capacity

    def _drop(self, run: Run, have: int) -> None:
        world = self.world
        del self.batch[run.job]
        if self.batch:
            self._tokens -= run.reached(self.step) + world.wanted[run.job].prompt
            self._growth -= run.rate
            self._rows -= run.rows
            self._siblings -= run.siblings
        else:
            self._tokens = self._growth = self._rows = self._siblings = 0.0
        start, world.published[run.job] = world.published[run.job], have
        world.outcome.chunks[run.job].append(ChunkRecord(self.number, run.began, self.now, start, have))


class Simulation:
    """One iteration on simulated instances.

    Args:
        wanted: the responses.
        policy: the scheduler's.
        times: of a step.
        instances, capacity, seats: engines, tokens of KV each, sequences each.
        speculation: how drafts fare; None: none are made.
        begun: tokens each response has at the start, its KV in the pool.
        batched: most tokens of a step. With it KV comes in blocks, and engines without reservations are stepped one by
            one as the live ones are (``PagedInstance``): exact, slower, without drafts.
        record: called with each batch of events and the decisions on it.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        policy: Policy,
        times: StepTimes,
        *,
        instances: int,
        capacity: int,
        seats: int = 256,
        speculation: Speculation | None = None,
        begun: Sequence[int] | None = None,
        batched: int | None = None,
        record: Callable[[Sequence[Event], Sequence[Decision]], None] | None = None,
    ) -> None:
        self.wanted, self.times, self.capacity, self.seats = wanted, times, capacity, seats
        self.reserves = policy.divided
        self.speculation = speculation
        self.batched = batched or 0
        if batched is not None and batched < seats:
            raise InvalidConfig(f"batched ({batched}) must not be below seats ({seats})", param="batched")
        if batched and speculation is not None:
            raise InvalidConfig("engines that are stepped one by one have no drafts", param="batched")
        self.core = Core(policy, block=BLOCK_SIZE if batched else 1)
        self.outcome = Outcome(chunks=[[] for _ in wanted])
        self.published = list(begun or [0] * len(wanted))
        self.cold = [not have for have in self.published]
        """Whether the next admission must compute the job's prefix."""
        self.orders = 0
        self._record = record
        kind = PagedInstance if batched and not policy.divided else _Instance
        self._instances: list[PagedInstance | _Instance] = [kind(i, self) for i in range(instances)]
        self._agenda: list[tuple[float, int, int]] = []

    def run(self) -> Outcome:
        """Let all responses end."""
        joined: list[Event] = [InstanceJoined(i.number, self.capacity, self.seats) for i in self._instances]
        submitted: list[Event] = [
            Submit(job, want.group, want.index, want.prompt, want.limit, self.published[job])
            for job, want in enumerate(self.wanted)
        ]
        for number in sorted(self._decide([*joined, *submitted])):
            self._plan(self._instances[number], 0.0)
        while self._agenda:
            at, number, version = heappop(self._agenda)
            instance = self._instances[number]
            if instance.version != version:
                continue
            events: list[Event] = []
            for run in instance.advance(at):
                self.cold[run.job] = False
                length = self.wanted[run.job].length
                if run.goal >= length:
                    self.outcome.ends.append(at)
                    self.outcome.seconds = max(self.outcome.seconds, at)
                    self.outcome.tokens += length
                    events.append(Finished(run.job, run.goal))
                else:
                    events.append(ChunkDone(run.job, run.goal))
            touched = self._decide(events) if events else set()
            instance.settle()
            touched.add(number)
            for other in sorted(touched):
                self._plan(self._instances[other], at)
        self.outcome.decisions = self.core.decisions
        return self.outcome

    def _decide(self, events: list[Event]) -> set[int]:
        decisions = self.core.on_event(*events)
        if self._record is not None:
            self._record(events, decisions)
        touched = set()
        for decision in decisions:
            if isinstance(decision, Abort):
                self._instances[decision.instance].abort(decision.job)
                touched.add(decision.instance)
            if not isinstance(decision, Dispatch):
                continue
            job = self.core.state.jobs[decision.job]
            if decision.source is not None and decision.source != decision.instance:
                self.outcome.moved += job.tokens
            goal = min(job.generated + decision.tokens, self.wanted[decision.job].length)
            self._instances[decision.instance].queue.append(Run(decision.job, job.generated, goal))
            touched.add(decision.instance)
        return touched

    def _plan(self, instance: PagedInstance | _Instance, at: float) -> None:
        instance.version += 1
        time = instance.next_event(at)
        if time is not None:
            heappush(self._agenda, (time, instance.number, instance.version))


def simulate(wanted: Sequence[Wanted], policy: Policy, times: StepTimes, **settings: object) -> Outcome:
    """Run one ``Simulation``."""
    return Simulation(wanted, policy, times, **settings).run()  # type: ignore[arg-type]
