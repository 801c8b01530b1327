"""An engine of the simulator that plans every step by the live engine's rule, over its bookkeeping of blocks.

Preemption hangs on details a formula does not have: KV comes in blocks, a group's prompt is there once, and what was
preempted is found again as far as nobody has taken its blocks. So the planner and the block pool are those of the live
engine; only the model is not there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from statepool.core.errors import InvalidConfig
from statepool.engine.scheduler import Plan, SequenceView, Snapshot, schedule
from statepool.kv import BlockPool, BlockTable
from statepool.kv.layout import BLOCK_SIZE
from statepool.rollout.groups import ChunkRecord

if TYPE_CHECKING:
    from statepool.rollout.des import Run, Simulation, Wanted

__all__ = ["PagedInstance"]


@dataclass(slots=True)
class _Sequence:
    run: Run
    prompt: int
    arrival: int
    keys: tuple[bytes, ...]
    """Of all blocks it will ever fill: those of the prompt are the group's."""
    have: int
    computed: int = 0
    furthest: int = 0
    began: float = 0.0
    start: int = 0
    table: BlockTable = field(default_factory=BlockTable)

    @property
    def total(self) -> int:
        """Tokens to be in the cache before the next one can be chosen."""
        return self.prompt + self.have

    @property
    def full(self) -> tuple[bytes, ...]:
        """Keys of the blocks that its tokens fill."""
        return self.keys[: self.total // BLOCK_SIZE]


class PagedInstance:
    """The same face as the simulator's other instance."""

    def __init__(self, number: int, world: Simulation) -> None:
        self.number, self.world = number, world
        self.queue: list[Run] = []
        self.version = 0
        self._pool = BlockPool(world.capacity // BLOCK_SIZE)
        self._running: dict[int, _Sequence] = {}
        self._waiting: dict[int, _Sequence] = {}
        self._work: list[tuple[_Sequence, int]] = []
        self._now = self._until = 0.0
        self._arrivals = 0
        self._starved = False

    def next_event(self, at: float) -> float | None:
        """When the step under way ends, or the next begins; None: there is nothing to do."""
        if self._work:
            return self._until
        if not (self.queue or self._running or self._waiting):
            return None
        self._now = max(self._now, at)
        return self._now

    def advance(self, at: float) -> list[Run]:
        """The step under way has ended; the runs that have reached their goal."""
        self._now = at
        done = []
        for sequence, count in self._work:
            sequence.computed += count
            if sequence.computed == sequence.total:
                sequence.have += 1
            self._publish(sequence)
            if sequence.have >= sequence.run.goal:
                self._leave(sequence)
                done.append(sequence.run)
        self.world.outcome.steps += bool(self._work)
        self._work = []
        return done

    def settle(self) -> None:
        """Begin the next step."""
        for run in self.queue:
            want = self.world.wanted[run.job]
            keys = want.keys or _keys(want)
            prompt = max(want.prompt, 1)  # there is a token to begin with
            self._waiting[run.job] = _Sequence(run, prompt, self._arrivals, keys, run.start, start=run.start)
            self._arrivals += 1
        self.queue = []
        if not (self._running or self._waiting):
            return
        plan = self._plan()
        if not plan.work:
            raise InvalidConfig("a response does not fit into the KV of an engine; give it more", param="kv")
        for name in plan.preempt:
            self._preempt(self._running[int(name)])
        for name in plan.admit:
            self._admit(self._waiting[int(name)])
        rows = tokens = more = 0
        for name, count in plan.work:
            sequence = self._running[int(name)]
            end = sequence.computed + count
            sequence.table.blocks += self._pool.take(sequence.table.missing(end))
            self.world.outcome.recomputed += max(min(end, sequence.furthest) - sequence.computed, 0)
            sequence.furthest = max(sequence.furthest, end)
            self._work.append((sequence, count))
            rows, more, tokens = rows + 1, more + count - 1, tokens + end
        times = self.world.times
        self._until = self._now + times.span(1, rows, tokens, 0.0) + times.prefill_seconds(more)

    def abort(self, job: int) -> None:
        """Drop a job."""
        self.queue = [run for run in self.queue if run.job != job]
        self._work = [(sequence, count) for sequence, count in self._work if sequence.run.job != job]
        self._waiting.pop(job, None)
        if job in self._running:
            self._leave(self._running[job])

    def _plan(self) -> Plan:
        snapshot = self._snapshot()
        plan = schedule(snapshot)
        self._starved = plan.starved
        return self._plan() if snapshot.unseen and not plan.starved else plan

    def _snapshot(self) -> Snapshot:
        """See ``engine.loop.StepLoop``: the same views, and nobody waits for weights, sessions or other machines."""
        running, waiting = [], []
        pending: set[bytes] = set()
        for sequence in self._running.values():
            decoding = sequence.computed == sequence.total - 1
            if not decoding:
                pending.update(sequence.full[sequence.computed // BLOCK_SIZE :])
            blocks = sequence.table.blocks
            running.append(
                SequenceView(
                    str(sequence.run.job), 0, sequence.arrival, sequence.total, sequence.computed, len(blocks),
                    freeable=self._pool.sole(blocks), decoding=decoding,
                )
            )  # fmt: skip
        unseen, seats = 0, self.world.seats - len(running)
        for sequence in sorted(self._waiting.values(), key=lambda each: each.arrival):
            if seats <= 0:
                break
            keys = sequence.full
            found = self._pool.match(keys, ())
            blocked = len(found) < len(keys) and keys[len(found)] in pending
            pending.update(keys[len(found) :])
            waiting.append(
                SequenceView(
                    str(sequence.run.job), 0, sequence.arrival, sequence.total,
                    hit_tokens=min(len(found) * BLOCK_SIZE, sequence.total - 1), hit_blocks=len(found),
                    hit_free=sum(self._pool.references(block) == 0 for block in found), blocked=blocked,
                )
            )  # fmt: skip
            seats -= not blocked
            if self._starved and not blocked:
                unseen = len(self._waiting) - len(waiting)
                break
        return Snapshot(running, waiting, self._pool.free, self.world.batched, self.world.seats, unseen)

    def _admit(self, sequence: _Sequence) -> None:
        job = sequence.run.job
        self._running[job] = self._waiting.pop(job)
        blocks = self._pool.match(sequence.full, ())
        self._pool.hold(blocks)
        sequence.table = BlockTable(blocks)
        sequence.computed = min(len(blocks) * BLOCK_SIZE, sequence.total - 1)
        sequence.began = self._now

    def _preempt(self, sequence: _Sequence) -> None:
        self._leave(sequence)
        self._waiting[sequence.run.job] = sequence
        self.world.outcome.preemptions += 1

    def _publish(self, sequence: _Sequence) -> None:
        table, full = sequence.table, sequence.computed // BLOCK_SIZE
        for i in range(table.published, full):
            self._pool.publish(table.blocks[i], sequence.keys[i], ())
        table.published = max(table.published, full)

    def _leave(self, sequence: _Sequence) -> None:
        job = sequence.run.job
        del self._running[job]
        self._pool.release(sequence.table.blocks)
        sequence.table, sequence.computed = BlockTable(), 0
        record = ChunkRecord(self.number, sequence.began, self._now, sequence.start, sequence.have)
        self.world.outcome.chunks[job].append(record)
        self.world.published[job] = sequence.start = sequence.have


def _keys(want: Wanted) -> tuple[bytes, ...]:
    """Of a response whose text is not known: only the prompt is its siblings' too."""
    shared = want.prompt // BLOCK_SIZE
    return tuple(
        f"{want.group}/{i}".encode() if i < shared else f"{want.group}/{want.index}/{i}".encode()
        for i in range((max(want.prompt, 1) + want.length) // BLOCK_SIZE)
    )
