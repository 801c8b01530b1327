"""A cluster of prefill and decode nodes steered by a conductor, event by event (Mooncake 2407.00079)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from statepool.core.errors import InvalidConfig
from statepool.kv.eviction import eviction
from statepool.serve.conductor import Conductor
from statepool.serve.costs import NodeCosts
from statepool.serve.prefixes import PrefixIndex
from statepool.serve.snapshot import SLO, Ask, Completion, Decision, DecodePool, Line, PrefillPool, Snapshot, Underway
from statepool.sim.events import Events
from statepool.sim.nodes import BlockCache, DecodeNode, Job, PrefillNode
from statepool.sim.traces import BLOCK, Call

__all__ = ["Cluster", "Load", "Shape"]

_STEP_SHARE = 0.9
"""How much of the allowed time between tokens a step with a prefill beside it may take."""

_JOINING = 16_384
"""Tokens of a request that may join while such a prefill runs."""

_SLICE_S = 0.02
"""Seconds of a prefill's work between two looks at what its machine does beside it."""

_Pieces: TypeAlias = tuple[tuple[Job, int], ...]
"""Jobs that are computed together, and how far each gets."""

_STEPS = 8
"""Decode steps that one piece of such a prefill spans."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many nodes there are, and what each holds."""

    prefill: int
    decode: int
    cache_tokens: int = 3_000_000
    """Tokens whose keys and values one prefill node keeps in memory."""
    block: int = BLOCK
    eviction: str = "lru"

    def __post_init__(self) -> None:
        for name in ("prefill", "decode", "cache_tokens", "block"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} is {getattr(self, name)}; it must be at least 1", param=name)


@dataclass(frozen=True, slots=True)
class Load:
    """The pools' load at one arrival: 1 is as much as the SLO allows."""

    at: float
    prefill: float
    decode: float


class Cluster:
    """Runs calls through one conductor; use an object once."""

    def __init__(
        self, costs: NodeCosts, shape: Shape, conductor: Conductor, slo: SLO, shadow: Conductor | None = None
    ) -> None:
        self.costs = costs
        self.shape = shape
        self.conductor = conductor
        self.shadow = shadow
        """Another conductor that is asked in every situation, and whose answers are only noted."""
        self.slo = slo
        self.loads: list[Load] = []
        self._events = Events()
        places = shape.prefill + (shape.decode if conductor.placement.inline else 0)
        self._index: PrefixIndex[int] = PrefixIndex(places)
        blocks = max(1, shape.cache_tokens // shape.block)
        caches = [BlockCache(node, blocks, eviction(shape.eviction), self._index) for node in range(places)]
        self.decode = [DecodeNode(costs) for _ in range(shape.decode)]
        beside = [None] * shape.prefill + list(self.decode)
        self.prefill = [PrefillNode(cache, slo.ttft_s, node) for cache, node in zip(caches, beside, strict=False)]
        self._coming: list[dict[int, Job]] = [{} for _ in range(shape.decode)]
        self._jobs: list[Job] = []
        self._entered = 0
        self._passed: Callable[[int], None] = lambda _: None

    def run(self, calls: Sequence[Call], passed: Callable[[int], None] | None = None) -> list[Job]:
        """Let ``calls`` arrive and all they cause happen; answers a job per call, in order.

        Args:
            calls: in order of arrival.
            passed: told after every arrival how many there were.
        """
        if passed is not None:
            self._passed = passed
        for call in calls:
            self._events.at(call.at, self._arrive, call)
        self._events.run()
        for node in range(self.shape.decode):
            self._advance(node, float("inf"))
        return self._jobs

    def _arrive(self, call: Call) -> None:
        ask = Ask(len(self._jobs), self._events.now, call.prompt)
        keys = call.keys[: call.prompt // self.shape.block]
        snapshot, decision = self._decide(ask, keys)
        job = Job(call, ask, decision, ask.at)
        job.keys = keys
        self._jobs.append(job)
        self._note_load(snapshot)
        self._passed(len(self._jobs))
        self._follow(job, ask, snapshot)

    def _ask_again(self, job: Job) -> None:
        now = self._events.now
        ask = replace(job.ask, at=now, waited_s=now - job.ask.at)
        snapshot, decision = self._decide(ask, job.keys)
        job.decided(decision, now)
        self._follow(job, ask, snapshot)

    def _decide(self, ask: Ask, keys: Sequence[int]) -> tuple[Snapshot, Decision]:
        for node in range(self.shape.decode):
            self._advance(node, ask.at)
        snapshot = self._snapshot(ask, keys)
        return snapshot, self.conductor.decide(ask, snapshot)

    def _follow(self, job: Job, ask: Ask, snapshot: Snapshot) -> None:
        job.shadow = self._difference(ask, snapshot, job.decision)
        if job.decision.ask_again_s:
            job.status = "kept"
            self._events.at(ask.at + job.decision.ask_again_s, self._ask_again, job)
        elif job.decision.refused:
            job.status = "refused"
        else:
            self._enter(job)

    def _enter(self, job: Job) -> None:
        now, decision = self._events.now, job.decision
        job.status = "queued"
        job.entry, self._entered = self._entered, self._entered + 1
        if decision.source >= 0:
            source = self.prefill[decision.source]
            source.link_free = max(source.link_free, now) + self.costs.transfer_s(decision.fetched)
            source.cache.use(job.keys[: decision.reuse // self.shape.block], now)
            job.ready = source.link_free
        self._coming[decision.decode][job.ask.id] = job
        self._plan(job)
        self._start(decision.prefill)

    def _difference(self, ask: Ask, snapshot: Snapshot, decision: Decision) -> str | None:
        if self.shadow is None:
            return None
        other = self.shadow.decide(ask, snapshot)
        if bool(other.refused) != bool(decision.refused):
            return f"refused: {other.refused}" if other.refused else "admitted"
        moved = (other.prefill, other.source) != (decision.prefill, decision.source)
        return f"prefill on {other.prefill}" if moved and not other.refused else None

    def _snapshot(self, ask: Ask, keys: Sequence[int]) -> Snapshot:
        now = self._events.now
        nodes = self.prefill
        ready = self._index.match(keys)
        stretch = [self._stretch(node) for node in nodes]
        lines: tuple[Line, ...] = ()
        if self.conductor.placement.chunk_tokens:
            lines = tuple(node.line(now, factor) for node, factor in zip(nodes, stretch, strict=True))
        plans = [self._will_hold(node, keys, depth) for node, depth in zip(nodes, ready.tolist(), strict=True)]
        prefill = PrefillPool(
            queue_s=np.array([node.queue_s(now, factor) for node, factor in zip(nodes, stretch, strict=True)]),
            busy_s=np.array([max(0.0, node.busy_until - now) for node in nodes]),
            queued_tokens=np.array([node.tokens for node in nodes]),
            queued_context=np.array([node.context for node in nodes]),
            held=np.array([depth for depth, _ in plans]) * self.shape.block,
            ready=ready * self.shape.block,
            after_rank=np.array([rank for _, rank in plans]),
            link_s=np.array([max(0.0, node.link_free - now) for node in nodes]),
            stretch=np.array(stretch),
            lines=lines,
        )
        asked = (self.conductor, self.shadow) if self.shadow is not None else (self.conductor,)
        wanted = any(each.admission.wants_underway for each in asked)
        arriving = [node.arriving for node in self.decode]
        decode = DecodePool(
            batch=np.array([node.batch for node in self.decode]),
            tokens=np.array([node.tokens for node in self.decode]),
            coming=np.array([len(jobs) + count for jobs, (count, _) in zip(self._coming, arriving, strict=True)]),
            coming_tokens=np.array(
                [
                    sum(job.ask.tokens for job in jobs.values()) + tokens
                    for jobs, (_, tokens) in zip(self._coming, arriving, strict=True)
                ]
            ),
            underway=self._underway(now) if wanted else (),
        )
        return Snapshot(prefill, decode)

    def _share_s(self, beside: DecodeNode) -> float:
        """Seconds of a decode step that a prefill beside it may take, when two more requests have joined."""
        return self.slo.tbt_s * _STEP_SHARE - beside.step_s(2, 2 * _JOINING)

    def _stretch(self, node: PrefillNode) -> float:
        """A prefill beside a decode batch has what the batch leaves of each step that the SLO allows."""
        if node.beside is None:
            return 1.0
        share_s = self._share_s(node.beside)
        if share_s < 0.25 * self.slo.tbt_s:
            return math.inf
        return 1 + node.beside.step_s() / share_s

    @staticmethod
    def _will_hold(node: PrefillNode, keys: Sequence[int], depth: int) -> tuple[int, float]:
        """How many leading ``keys`` the node will hold, and the rank of the last job that must run for it."""
        rank = -math.inf
        while depth < len(keys):
            planned = node.planned.get(keys[depth])
            if planned is not None:
                rank = max(rank, planned.decision.rank)
            elif keys[depth] not in node.cache:
                break
            depth += 1
        return depth, rank

    def _plan(self, job: Job) -> None:
        """Put ``job`` in its node's line, behind the one whose blocks it counts on."""
        node = self.prefill[job.decision.prefill]
        kept = -(-job.decision.reuse // self.shape.block)
        for key in job.keys[: 0 if job.decision.source >= 0 else kept]:
            if key not in node.cache:
                job.after = node.planned.get(key, job.after)
        for key in job.keys[kept:]:
            node.planned[key] = job
        node.queue(job)

    def _underway(self, now: float) -> tuple[Underway, ...]:
        found = []
        for number, node in enumerate(self.decode):
            done = len(node.ends)
            for _, _, job in node.active:
                written = done - job.join_index + 1
                found.append(Underway(number, job.joined - now, job.ask.tokens + written - 1, written))
            for job in self._coming[number].values():
                expected = job.first_token if job.prefilled else job.decided_at + job.decision.ttft_s
                wait = max(0.0, expected + self.costs.handoff_s(job.ask.tokens) - now)
                found.append(Underway(number, wait, job.ask.tokens, 1))
            found += [Underway(number, 0.0, job.ask.tokens, 1) for job in node.waiting_jobs()]
        return tuple(found)

    def _note_load(self, snapshot: Snapshot) -> None:
        steps = [node.step_s() for node in self.decode]
        queue_s = float(snapshot.prefill.queue_s.mean())
        decode = float(np.mean(steps)) / self.slo.tbt_s
        room = max(node.tokens for node in self.decode) / self.costs.vram_tokens
        self.loads.append(Load(self._events.now, queue_s / self.slo.ttft_s, max(decode, room)))

    def _start(self, number: int) -> None:
        node, now = self.prefill[number], self._events.now
        if node.running or not node.waiting:
            return
        if self.costs.step_tokens and node.beside is None:
            self._step(number)
            return
        if node.beside is not None:
            self._advance(number - self.shape.prefill, now)
        in_order = not self.conductor.placement.chunk_tokens
        job = node.take(now, in_order)
        if job is None:
            self._wait(number, node.waiting[:1] if in_order else node.waiting)
            return
        if job.started < 0:
            self._find_blocks(node, job)
        layers = self.conductor.placement.layers_at_once
        if node.beside is None and 0 < layers < self.costs.layers:
            end, piece_s = self._next_layers(job, layers)
        else:
            chunk = self.conductor.placement.chunk_tokens or job.ask.tokens
            end, piece_s = self._piece(node, job, chunk)
            job.left_s = self.costs.chunked_s(job.ask.tokens, end, chunk)
        node.busy_s += piece_s
        job.prefill_spent_s += piece_s
        if end == job.ask.tokens and node.beside is None:
            self.decode[job.decision.decode].expect(now + piece_s + self.costs.handoff_s(job.ask.tokens))
        self._compute(number, ((job, end),), piece_s)

    def _step(self, number: int) -> None:
        """One step of an engine, which several prompts of its line share."""
        node, costs, now = self.prefill[number], self.costs, self._events.now
        work = node.take_step(now, costs.step_tokens, self.shape.block)
        if not work:
            self._wait(number, node.waiting)
            return
        c0, c1, c2 = costs.prefill
        pieces, step_s = [], c0
        for job, tokens in work:
            if job.started < 0:
                self._find_blocks(node, job)
            end = job.position + tokens
            piece_s = c1 * tokens + c2 * (end**2 - job.position**2)
            job.left_s = costs.prefill_s(job.ask.tokens, end) if end < job.ask.tokens else 0.0
            job.prefill_spent_s += piece_s + c0 / len(work)
            step_s += piece_s
            pieces.append((job, end))
        node.busy_s += step_s
        self._compute(number, tuple(pieces), step_s)

    def _wait(self, number: int, line: Sequence[tuple[float, int, Job]]) -> None:
        """Look again when the first blocks that ``line`` waits for have come."""
        coming = [job.ready for _, _, job in line if job.ready > self._events.now]
        self._events.at(min(coming), self._start, number)

    def _compute(self, number: int, pieces: _Pieces, left_s: float) -> None:
        """Let ``pieces`` take ``left_s`` seconds together, longer where decode steps run beside them."""
        node, now, jobs = self.prefill[number], self._events.now, tuple(job for job, _ in pieces)
        if node.beside is not None or self.costs.prefill_beside == self.costs.decode_beside == 1:
            node.begin(jobs, now + left_s)
            self._events.at(node.busy_until, self._pieces_done, number, pieces)
            return
        self._slow_steps(self.costs.decode_beside)
        factor = self.costs.prefill_beside if any(other.active for other in self.decode) else 1.0
        node.begin(jobs, now + left_s * factor)
        if left_s <= _SLICE_S:
            self._events.at(node.busy_until, self._pieces_done, number, pieces)
        else:
            self._events.at(now + _SLICE_S * factor, self._compute, number, pieces, left_s - _SLICE_S)

    def _next_layers(self, job: Job, count: int) -> tuple[int, float]:
        """How far ``job`` is after ``count`` layers of its only pass, all of them or nowhere, and their seconds."""
        of = self.costs.layers
        if not job.layers:
            job.whole_s = self.costs.prefill_s(job.ask.tokens, job.position)
        before, job.layers = job.layers, min(job.layers + count, of)
        job.left_s = job.whole_s * (of - job.layers) / of
        end = job.ask.tokens if job.layers == of else job.position
        return end, job.whole_s * (job.layers - before) / of

    def _piece(self, node: PrefillNode, job: Job, chunk: int) -> tuple[int, float]:
        """Where the next piece of ``job`` ends, and the seconds it takes."""
        end = min(job.position + chunk, job.ask.tokens)
        beside = node.beside
        if beside is None:
            return end, self.costs.prefill_s(end, job.position)
        # A handful of decode steps, each with as many prompt tokens as fit in beside the batch.
        share_s = max(self._share_s(beside), 0.1 * self.slo.tbt_s)
        c0, c1, c2 = self.costs.prefill
        tokens = int(share_s / (c1 + 2 * c2 * end)) * _STEPS
        end = min(end, job.position + max(tokens, 1))
        work_s = self.costs.prefill_s(end, job.position) - (c0 if beside.batch else 0.0)
        steps = max(1, math.ceil(work_s / share_s))
        beside.inline(work_s / steps, steps, self._events.now)
        return end, work_s + steps * beside.step_s()

    def _find_blocks(self, node: PrefillNode, job: Job) -> None:
        """What is here when the prefill begins counts, not what was here when it was planned."""
        now = self._events.now
        job.started = now
        if job.decision.source >= 0:
            node.cache.use(job.keys[: -(-job.decision.reuse // self.shape.block)], now)
        job.position = node.reusable(job, self.shape.block)
        job.reused = job.position

    def _pieces_done(self, number: int, pieces: _Pieces) -> None:
        node = self.prefill[number]
        if node.beside is not None:
            self._advance(number - self.shape.prefill, self._events.now)
            # Steps in which a request joined carried no prefill; and a step is over when it is over.
            more_s = node.beside.inline_steps * self.slo.tbt_s * _STEP_SHARE
            over = max(node.beside.clock, self._events.now + more_s)
            if over > self._events.now:
                node.begin(node.running, over)
                self._events.at(over, self._pieces_done, number, pieces)
                return
        node.running = ()
        if self.costs.decode_beside != 1 and not any(other.running for other in self.prefill):
            self._slow_steps(1.0)
        for job, end in pieces:
            job.position = end
            if end < job.ask.tokens:
                node.queue(job)
            else:
                self._prefilled(node, job)
        self._start(number)

    def _slow_steps(self, times: float) -> None:
        """From now on decode steps take so many times as long as alone."""
        for number, node in enumerate(self.decode):
            self._advance(number, self._events.now)
            node.beside = times

    def _prefilled(self, node: PrefillNode, job: Job) -> None:
        now = self._events.now
        job.first_token = now + self.costs.reply_s
        node.cache.use(job.keys, now)
        for key in job.keys:
            if node.planned.get(key) is job:
                del node.planned[key]
        node.link_free = max(node.link_free, now) + self.costs.transfer_s(job.ask.tokens) / self.costs.layers
        if job.call.output == 1:
            del self._coming[job.decision.decode][job.ask.id]
            self._ended(job)
            job.tbt_s = 0.0
            job.status = "done"
            return
        # Beside a decode batch the keys and values are where they are needed.
        handoff_s = 0.0
        if node.beside is None:
            job.stall_s = self.costs.stall_s(job.ask.tokens)
            handoff_s = self.costs.handoff_s(job.ask.tokens) - job.stall_s
        self._events.at(job.first_token + handoff_s, self._deliver, job)

    def _deliver(self, job: Job) -> None:
        number, now = job.decision.decode, self._events.now
        self._advance(number, now)
        node = self.decode[number]
        waiting, tokens = node.arriving
        admission = self.conductor.admission
        refused = admission.late_refusal(job.ask.tokens, node.batch + waiting, node.tokens + tokens)
        if refused:
            kept = replace(job.ask, waited_s=now - job.ask.at)
            again_s = admission.ask_again_s(kept, replace(job.decision, ttft_s=0.0))
            if again_s:
                # Its keys and values wait where they were computed, and its first token with them.
                job.first_token = now + again_s
                self._events.at(job.first_token, self._deliver, job)
                return
        del self._coming[number][job.ask.id]
        if refused:
            job.status = "wasted"
            return
        job.status = "waiting"
        node.join(job, now)

    def _advance(self, number: int, until: float) -> None:
        for job in self.decode[number].advance(until):
            self._ended(job)

    def _ended(self, job: Job) -> None:
        ended = Completion(job.ask.tokens, job.call.output)
        self.conductor = self.conductor.told(ended)
        if self.shadow is not None:
            self.shadow = self.shadow.told(ended)
