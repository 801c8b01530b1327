"""The simulated nodes: a block cache, a prefill node with its line, a decode node with its batch."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from statepool.engine.scheduler import SequenceView, Snapshot, schedule
from statepool.kv.eviction import Eviction
from statepool.serve.costs import NodeCosts
from statepool.serve.overload import ROOM
from statepool.serve.prefixes import PrefixIndex
from statepool.serve.snapshot import Ask, Decision, Line, worst_tenth
from statepool.sim.traces import Call

__all__ = ["BlockCache", "DecodeNode", "Job", "PrefillNode"]


_BATCHES = 1024
"""Batch sizes whose step times are kept in a table."""

_NOBODY = Line(np.zeros(0), np.zeros(1), np.array([np.inf]))

_ERROR_S = 2.0
"""Seconds by which estimates of a line's end may be off."""


class Job:
    """A request on its way through the cluster. Times are seconds on the simulation's clock."""

    __slots__ = (
        "after",
        "ask",
        "call",
        "decided_at",
        "decision",
        "entry",
        "first_token",
        "join_index",
        "joined",
        "keys",
        "layers",
        "left_s",
        "position",
        "prefill_spent_s",
        "ready",
        "reused",
        "shadow",
        "stall_s",
        "started",
        "status",
        "tbt_s",
        "whole_s",
    )

    def __init__(self, call: Call, ask: Ask, decision: Decision, at: float) -> None:
        self.call = call
        self.ask = ask
        self.keys = call.keys
        self.decided(decision, at)
        self.entry = ask.id
        """Number in order of admission; of equal rank the first goes first, for the others count on its blocks."""
        self.after: Job | None = None
        """The job of the same line that computes blocks this one counts on."""
        self.started = -1.0
        self.first_token = math.nan
        self.reused = 0
        self.layers = 0
        """Layers that are computed, of a prefill that gives way between them."""
        self.whole_s = 0.0
        """Seconds that all of them take."""
        self.prefill_spent_s = 0.0
        self.shadow: str | None = None
        """What another conductor would have done, if one was asked and differs."""
        self.stall_s = 0.0
        """How long the step that it joins waits for its blocks."""
        self.join_index = 0
        self.joined = math.nan
        self.tbt_s = math.nan
        self.status = "queued"

    def decided(self, decision: Decision, at: float) -> None:
        """The conductor's word on it, at ``at``; for one that was kept the word before no longer counts."""
        self.decision = decision
        self.decided_at = at
        self.ready = at
        """When the blocks it copies have arrived."""
        self.position = decision.reuse
        """Tokens whose keys and values exist."""
        self.left_s = decision.prefill_s

    @property
    def prefilled(self) -> bool:
        """Whether its first token is written."""
        return self.first_token == self.first_token  # not NaN

    def may_start(self, now: float) -> bool:
        """Whether the blocks it counts on are there."""
        return self.ready <= now and (self.after is None or self.after.prefilled)


class BlockCache:
    """The blocks of one node, known to the cluster's index."""

    def __init__(self, node: int, capacity: int, policy: Eviction[int], index: PrefixIndex[int]) -> None:
        self._node = node
        self._capacity = capacity
        self._policy = policy
        self._index = index
        self._held: set[int] = set()

    def __contains__(self, key: int) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def held(self, keys: Sequence[int]) -> int:
        """How many leading ``keys`` are here."""
        for depth, key in enumerate(keys):
            if key not in self._held:
                return depth
        return len(keys)

    def use(self, keys: Sequence[int], at: float) -> None:
        """Keep ``keys``, a prompt's leading blocks; others are given up for them."""
        chain = keys[: self._capacity]
        for key in chain:
            if key not in self._held:
                self._held.add(key)
                self._index.add(self._node, key)
        self._policy.used(chain, at)
        over = len(self._held) - self._capacity
        if over > 0:
            pinned = frozenset(chain)
            for _ in range(over):
                victim = self._policy.victim(pinned)
                assert victim is not None, "a chain is no longer than the cache"
                self._held.remove(victim)
                self._index.drop(self._node, victim)


class PrefillNode:
    """One prefill at a time, in order of rank; with chunks, one of lower rank goes first at their borders."""

    def __init__(self, cache: BlockCache, ttft_s: float, beside: DecodeNode | None = None) -> None:
        self.cache = cache
        self.beside = beside
        """The decode node whose steps carry the prefills of this line; None on a prefill node."""
        self.running: tuple[Job, ...] = ()
        """What is being computed: one job, or those that share an engine's step."""
        self.busy_until = 0.0
        self.link_free = 0.0
        self.busy_s = 0.0
        self.waiting: list[tuple[float, int, Job]] = []
        self.waiting_s = 0.0
        self.tokens = 0
        self.context = 0
        self.planned: dict[int, Job] = {}
        """The blocks that jobs of the line will compute, and the last such job."""
        self._ttft_s = ttft_s
        self._line: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def begin(self, jobs: tuple[Job, ...], until: float) -> None:
        """Compute a piece of each of ``jobs`` until then."""
        self.running = jobs
        self.busy_until = until
        self._line = None

    def queue(self, job: Job) -> None:
        """Put ``job`` in the line."""
        insort(self.waiting, (job.decision.rank, job.entry, job))
        self.waiting_s += job.left_s
        self.tokens += job.ask.tokens - job.position
        self.context += job.ask.tokens
        self._line = None

    def take(self, now: float, in_order: bool = False) -> Job | None:
        """The first job of the line whose blocks are here; None if there is none.

        With ``in_order`` none but the very first: another that cannot be interrupted would cost it more than the wait.
        """
        for place, (_, _, job) in enumerate(self.waiting[:1] if in_order else self.waiting):
            if job.may_start(now):
                self._leaves(place)
                return job
        return None

    def take_step(self, now: float, step_tokens: int, block: int) -> list[tuple[Job, int]]:
        """Jobs of the line in an engine's next step, by the engine's own scheduler, and how many tokens of each.

        Args:
            now: seconds on the simulation's clock.
            step_tokens: most tokens of a step.
            block: tokens of a block.
        """
        there = {str(job.entry): (place, job) for place, (_, _, job) in enumerate(self.waiting) if job.may_start(now)}
        running, waiting = [], []
        for name, (place, job) in there.items():
            if job.started >= 0:
                running.append(SequenceView(name, 0, place, job.ask.tokens, computed=job.position))
            else:
                waiting.append(SequenceView(name, 0, place, job.ask.tokens, hit_tokens=self.reusable(job, block)))
        plan = schedule(Snapshot(running, waiting, free_blocks=1 << 62, max_tokens=step_tokens, max_seqs=step_tokens))
        found = [(there[name][1], tokens) for name, tokens in plan.work]
        for place in sorted((there[name][0] for name, _ in plan.work), reverse=True):
            self._leaves(place)
        return found

    def reusable(self, job: Job, block: int) -> int:
        """Tokens of ``job`` in the whole blocks that are here; the last token is computed in any case."""
        return min(self.cache.held(job.keys) * block, job.ask.tokens - 1)

    def _leaves(self, place: int) -> None:
        _, _, job = self.waiting.pop(place)
        self.waiting_s = self.waiting_s - job.left_s if self.waiting else 0.0
        self.tokens -= job.ask.tokens - job.position
        self.context -= job.ask.tokens
        self._line = None

    def queue_s(self, now: float, stretch: float = 1.0) -> float:
        """Estimated seconds until everything here is done."""
        rest = sum(job.left_s for job in self.running)
        return max(0.0, self.busy_until - now) + (rest + self.waiting_s) * stretch

    def line(self, now: float, stretch: float = 1.0) -> Line:
        """The line for a snapshot, with what is left of the running job in its place."""
        running = [job for job in self.running if job.left_s > 0]
        if not self.waiting and not running:
            return _NOBODY
        if self._line is None:
            jobs = [(job.decision.rank, job) for _, _, job in self.waiting]
            for job in running:
                insort(jobs, (job.decision.rank, job), key=lambda entry: entry[0])
            ranks = np.array([rank for rank, _ in jobs])
            ahead = np.concatenate([[0.0], np.cumsum([job.left_s for _, job in jobs])])
            deadlines = np.array([job.ask.at + self._ttft_s for _, job in jobs])
            self._line = (ranks, ahead, deadlines)
        ranks, work, deadlines = self._line
        ahead = work * (stretch if stretch < math.inf else 1.0)
        slack = np.full(len(ahead), np.inf)
        slack[:-1] = deadlines - ahead[1:] - max(now, self.busy_until)
        # A promise that is clearly broken cannot be kept by waiting; one that is about to be is not to be delayed.
        slack[slack < -_ERROR_S] = np.inf
        return Line(ranks, ahead, np.minimum.accumulate(slack[::-1])[::-1])


class DecodeNode:
    """Continuous batching: every step writes a token of each request; requests join and leave between steps."""

    def __init__(self, costs: NodeCosts) -> None:
        self.costs = costs
        self.clock = 0.0
        self.tokens = 0
        self.batch = 0
        self.most_tokens = 0
        self._inline_s = 0.0
        self.beside = 1.0
        """How many times as long as alone a step takes now."""
        self.inline_steps = 0
        """Shares of a prefill that are still to be computed beside the batch, one per step."""
        self._expected: list[float] = []
        self._last_join = -1
        self.ends: list[float] = []
        """When each step ended."""
        self.active: list[tuple[int, int, Job]] = []
        """(step after which it is done, id, job), a heap."""
        self._arrivals: list[tuple[float, int, Job]] = []
        self._base = costs.decode_many_s(np.arange(_BATCHES), np.zeros(_BATCHES)).tolist()

    def step_s(self, more: int = 0, more_tokens: int = 0) -> float:
        """Seconds of the next step, without prefills, if ``more`` requests had joined."""
        batch = self.batch + more
        if not batch:
            return 0.0
        base = self._base[batch] if batch < _BATCHES else self.costs.decode_s(batch, 0)
        return base + (self.tokens + more_tokens) * self.costs.token_read_s

    @property
    def arriving(self) -> tuple[int, int]:
        """Requests that wait for the next step, and their tokens."""
        return len(self._arrivals), sum(job.ask.tokens for _, _, job in self._arrivals)

    def waiting_jobs(self) -> list[Job]:
        """Those that wait for the next step or for room."""
        return [job for _, _, job in self._arrivals]

    def join(self, job: Job, at: float) -> None:
        """``job`` is in memory at ``at`` and runs as soon as a step ends and it fits."""
        heappush(self._arrivals, (at, job.ask.id, job))

    def advance(self, until: float) -> list[Job]:
        """Run the steps that begin before ``until``; answers the requests that ended."""
        ended: list[Job] = []
        read_s, base, ends, active = self.costs.token_read_s, self._base, self.ends, self.active
        while True:
            if not active:
                arrival = self._arrivals[0][0] if self._arrivals else math.inf
                self._prefill_alone(min(arrival, until))
                if arrival > until or not self._arrivals:
                    return ended
                self.clock = max(self.clock, arrival)
            self._admit()
            stop = min(until, self._arrivals[0][0] if self._arrivals and self._fits() else until)
            last = active[0][0]
            clock, tokens, batch = self.clock, self.tokens, self.batch
            step_s = base[batch] if batch < _BATCHES else self.costs.decode_s(batch, 0)
            while clock < stop and len(ends) < last:
                took = (step_s + tokens * read_s) * self.beside
                if self.inline_steps and self._may_inline(clock, took):
                    took += self._inline_s
                    self.inline_steps -= 1
                clock += took
                tokens += batch
                ends.append(clock)
            self.clock, self.tokens = clock, tokens
            self.most_tokens = max(self.most_tokens, tokens)
            while active and active[0][0] == len(ends):
                ended.append(self._finish(heappop(active)[2]))
            if clock >= until:
                return ended

    def inline(self, share_s: float, steps: int, now: float) -> None:
        """Let the next ``steps`` steps each spend ``share_s`` seconds on a prefill as well."""
        self._inline_s = share_s
        self.inline_steps = steps
        self.clock = max(self.clock, now)

    def expect(self, at: float) -> None:
        """A request will join at ``at``: the step before and the one after it carry no prefill."""
        heappush(self._expected, at)

    def _may_inline(self, clock: float, took: float) -> bool:
        while self._expected and self._expected[0] <= clock:
            heappop(self._expected)
        joined = len(self.ends) == self._last_join
        return not joined and not (self._expected and self._expected[0] < clock + took + self._inline_s)

    def _prefill_alone(self, until: float) -> None:
        if self.inline_steps and until > self.clock:
            steps = min(self.inline_steps, int((until - self.clock) / self._inline_s + 1e-6))
            self.inline_steps -= steps
            self.clock += steps * self._inline_s

    def _fits(self) -> bool:
        waiting = self._arrivals[0][2]
        return self.tokens + waiting.ask.tokens <= self.costs.vram_tokens * ROOM

    def _admit(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self.clock and (self._fits() or not self.active):
            job = heappop(self._arrivals)[2]
            job.joined = self.clock
            self.clock += job.stall_s
            job.join_index = self._last_join = len(self.ends)
            job.status = "decoding"
            self.batch += 1
            self.tokens += job.ask.tokens
            # The first token came with the prefill.
            heappush(self.active, (len(self.ends) + job.call.output - 1, job.ask.id, job))

    def _finish(self, job: Job) -> Job:
        times = np.array([job.first_token, *self.ends[job.join_index : job.join_index + job.call.output - 1]])
        job.tbt_s = worst_tenth(np.diff(times))
        job.status = "done"
        self.batch -= 1
        self.tokens -= job.ask.tokens + job.call.output - 1
        return job
