"""The step loop: snapshot, plan, run, read. Everything that happens to a sequence between submit and its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from operator import attrgetter
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from statepool.core.errors import KVLost
from statepool.engine.attention.spec import AttentionSpec
from statepool.engine.batch import Batch, Context
from statepool.engine.branches import Branch, fork, settle
from statepool.engine.config import EngineConfig
from statepool.engine.request import Output
from statepool.engine.runner import HEAD_ROWS, Repairable, Runner
from statepool.engine.sampler import token_logprob
from statepool.engine.scheduler import Plan, SequenceView, Snapshot, schedule
from statepool.engine.sequence import Sequence
from statepool.engine.session import SessionStore
from statepool.engine.shared import SharedBlocks
from statepool.engine.transfer import State
from statepool.kv import BlockPool, BlockTable, TierFailure, block_keys
from statepool.kv.layout import BLOCK_SIZE

F32 = npt.NDArray[np.float32]
_log = logging.getLogger(__name__)
_RANK = attrgetter("request.priority", "arrival")

COUNTERS = (
    "steps",
    "forward_tokens",
    "prompt_tokens",
    "generated_tokens",
    "prefix_query_tokens",
    "prefix_hit_tokens",
    "preemptions",
    "recomputed_tokens",
    "draft_tokens",
    "accepted_tokens",
    "aborted",
    "pool_hit_tokens",
    "attention_workers_lost",
)


class BatchDrafter(Protocol):
    """Guesses tokens for several sequences before a step."""

    def draft(self, sequences: list[Sequence], keys: Callable[[Sequence], list[bytes]]) -> None:
        """Set ``drafts`` of any of ``sequences``, which all wait for their next token; ``keys`` gives block keys."""
        ...


class StepLoop:
    """Waiting and running sequences over one pool and one runner.

    Args:
        root: gives the root of a sequence's block keys from its salt, under the weights of now.
        attention: what the runner's layers run.
        drafter: drafts for several sequences at once, such as with the model itself.
        shared: the way to the shared pool; None keeps all blocks here.
    """

    def __init__(
        self,
        config: EngineConfig,
        pool: BlockPool,
        runner: Runner,
        sessions: SessionStore,
        root: Callable[[str], bytes],
        attention: AttentionSpec,
        drafter: BatchDrafter | None = None,
        shared: SharedBlocks | None = None,
    ) -> None:
        self.config = config
        self.pool = pool
        self.runner = runner
        self.sessions = sessions
        self._root = root
        self._attention = attention
        self.shared = shared
        self.drafter = drafter
        self.running: dict[str, Sequence] = {}
        self.waiting: dict[str, Sequence] = {}
        self.parked: dict[str, Sequence] = {}
        """Sequences that keep their blocks and do not run."""
        self._starved = False
        """The last plan left somebody waiting for want of blocks."""
        self.count: dict[str, int] = dict.fromkeys(COUNTERS, 0)

    def find(self, request_id: str) -> Sequence | None:
        """The sequence of a request, running, waiting or parked."""
        return self.running.get(request_id) or self.waiting.get(request_id) or self.parked.get(request_id)

    def remove(self, request_id: str) -> bool:
        """Take a sequence out and free its blocks; False if it is not here."""
        sequence = self.find(request_id)
        if sequence is None:
            return False
        for place in (self.running, self.waiting, self.parked):
            place.pop(request_id, None)
        self._release(sequence)
        return True

    def restore(self, sequence: Sequence, state: State) -> None:
        """Give an imported sequence its KV back, if all of it can be had; what cannot is computed again."""
        sequence.moved = state
        if not state.skipped:
            self._rejoin(sequence, state)

    def step(self) -> list[Output]:
        """Run one batch; returns what each of its sequences gained. Nothing where KV was lost: it is computed again."""
        outputs: list[Output] = []
        try:
            outputs = self._step()
            if self.shared is not None and not self.runner.busy:
                self.shared.flush()
                if not (self.running or self.waiting):
                    self.shared.drain()
        except KVLost as error:
            self._begin_again(error)
        return outputs

    def _step(self) -> list[Output]:
        plan = self._plan()
        for request_id in plan.preempt:
            self._preempt(self.running[request_id])
        # Cached blocks are held before a session may evict some to come back.
        for request_id in sorted(plan.admit, key=lambda name: self.waiting[name].resumes):
            self._admit(self.waiting[request_id])
        return self._execute([(self.running[name], tokens) for name, tokens in plan.work])

    def reweigh(self) -> None:
        """The weights changed: running sequences become private, waiting ones start under the new keys."""
        for sequence in (*self.running.values(), *self.parked.values()):
            sequence.stale = True
        for sequence in self.waiting.values():
            self._release(sequence)
            sequence.root, sequence.keys, sequence.looked_up = self._root(sequence.request.salt), [], False
            sequence.moved = None

    def _plan(self) -> Plan:
        while True:
            self._book_arrivals()
            snapshot = self._snapshot()
            plan = schedule(snapshot)
            self._starved = plan.starved
            if snapshot.unseen and not plan.starved:
                continue  # there is room again
            if self.shared is not None:
                if self.shared.came:
                    continue  # blocks came while it looked around, which some of what it saw did not count on
                if plan.starved and self.shared.drain():
                    continue  # what was on its way there held blocks
                if not plan.work and self.shared.wait():
                    continue
            # Idle sessions leave the pool before any running request does.
            if plan.starved and self.sessions.park_oldest():
                continue
            idle = [s for s in self.waiting.values() if s.table.blocks]
            if plan.work or not idle:
                return plan
            self._release(idle[-1])  # imported KV that stands in everybody's way is computed again later

    def _snapshot(self) -> Snapshot:
        running = []
        pending: set[bytes] = set()
        self._draft()
        wanted = 0
        for sequence in self.running.values():
            request, total, computed = sequence.request, sequence.total, sequence.computed
            held = len(sequence.table.blocks)
            wanted += sequence.table.missing(total)
            decoding = computed == len(sequence.tokens) - 1
            if not (decoding or sequence.stale):
                pending.update(self._keys(sequence)[computed // BLOCK_SIZE :])
            running.append(
                SequenceView(request.id, request.priority, sequence.arrival, total, computed, held, decoding=decoding)
            )
        if wanted > self.pool.free:  # else nobody is preempted, and nobody asks
            running = [
                msgspec.structs.replace(view, freeable=self.pool.sole(sequence.table.blocks))
                for view, sequence in zip(running, self.running.values(), strict=True)
            ]
        waiting = []
        claimed: set[tuple[str, str]] = set()
        unseen = 0
        seats = self.config.max_seqs - len(self.running)
        for sequence in sorted(self.waiting.values(), key=_RANK):
            if seats <= 0:
                break
            view = self._waiting_view(sequence, pending, claimed)
            waiting.append(view)
            seats -= not view.blocked
            # The first who finds no room stops all behind it; what the shared pool has for them is asked for early.
            if self._starved and not view.blocked and self.shared is None:
                unseen = len(self.waiting) - len(waiting)
                break
        config = self.config
        return Snapshot(running, waiting, self.pool.free, config.max_batched_tokens, config.max_seqs, unseen)

    def _waiting_view(self, sequence: Sequence, pending: set[bytes], claimed: set[tuple[str, str]]) -> SequenceView:
        request = sequence.request
        tokens = blocks = free = 0
        blocked = False
        owner = (request.salt, request.session or "")
        sequence.resumes = False
        if sequence.moved is not None:
            blocked = not self._rejoin(sequence, sequence.moved)
        if sequence.table.blocks:  # imported with its KV
            tokens, blocks = sequence.computed, len(sequence.table.blocks)
        elif not (blocked or sequence.scoring):
            kept = None
            if request.session is not None and owner not in claimed:
                kept = self.sessions.peek(*owner, sequence.tokens, sequence.root)
            if kept is not None:
                claimed.add(owner)
                sequence.resumes = True
                tokens, blocks, free = kept
            else:
                keys = self._keys(sequence)
                found = self.pool.match(keys, sequence.tokens)
                computing = len(found) < len(keys) and keys[len(found)] in pending
                blocked = self._fetching(sequence, keys, found, computing) or computing
                tokens, blocks = len(found) * BLOCK_SIZE, len(found)
                free = sum(self.pool.references(block) == 0 for block in found)
                pending.update(keys[len(found) :])
        return SequenceView(
            request.id,
            request.priority,
            sequence.arrival,
            sequence.total,
            hit_tokens=min(tokens, len(sequence.tokens) - 1),
            hit_blocks=blocks,
            hit_free=free,
            blocked=blocked,
        )

    def _admit(self, sequence: Sequence) -> None:
        request = sequence.request
        del self.waiting[request.id]
        self.running[request.id] = sequence
        if sequence.table.blocks or sequence.scoring:
            return
        if sequence.resumes:
            blocks, found = self.sessions.claim(request.salt, request.session or "", sequence.tokens)
        else:
            blocks = self.pool.match(self._keys(sequence), sequence.tokens)
            self.pool.hold(blocks)
            found = len(blocks) * BLOCK_SIZE
        # The last token is always computed: its logits are wanted. Its KV is rewritten with the same bits.
        sequence.computed = min(found, len(sequence.tokens) - 1)
        sequence.table = BlockTable(blocks)
        if not sequence.admitted:
            sequence.cached_tokens = sequence.computed
            self.count["prefix_query_tokens"] += sequence.prompt_len
            self.count["prefix_hit_tokens"] += sequence.computed
        sequence.admitted = True

    def _preempt(self, sequence: Sequence) -> None:
        del self.running[sequence.request.id]
        self._release(sequence)
        sequence.drafts, sequence.branches, sequence.looked_up = [], [], False
        if sequence.stale:
            sequence.stale, sequence.keys, sequence.root = False, [], self._root(sequence.request.salt)
        if sequence.scoring:
            sequence.prompt_logprobs = [None]
        if sequence.embedding is not None:
            sequence.embedding[:] = 0
        self.waiting[sequence.request.id] = sequence
        self.count["preemptions"] += 1

    def _draft(self) -> None:
        decoding = []
        for sequence in self.running.values():
            if sequence.drafts or sequence.branches:
                sequence.drafts, sequence.branches = [], []
            if sequence.computed != len(sequence.tokens) - 1:
                continue
            decoding.append(sequence)
            if sequence.drafter is not None:
                room = sequence.limit - len(sequence.tokens) - 1
                sequence.drafts = sequence.drafter.draft(sequence.tokens)[: max(room, 0)]
        if self.drafter is not None:
            self.drafter.draft(decoding, self._keys)

    def _execute(self, work: list[tuple[Sequence, int]]) -> list[Output]:
        parts, rows, at = [], [], 0
        for sequence, count in work:
            first, end, blocks = sequence.computed, sequence.computed + count, sequence.table.blocks
            if end > len(blocks) * BLOCK_SIZE:
                blocks += self.pool.take(sequence.table.missing(end))
            if sequence.drafts:
                sequence.drafts = sequence.drafts[: max(end - len(sequence.tokens), 0)]
            parts.append((sequence.slice(first, end), first, blocks))
            if first < sequence.furthest:
                self.count["recomputed_tokens"] += min(end, sequence.furthest) - first
            sequence.furthest = max(sequence.furthest, end)
            rows += self._rows(sequence, count, at)
            at += count
        known = self._attention.sparse is not None
        branches = [] if known else fork([s for s, _ in work if s.branches], self.pool, self.runner)
        parts += [branch.part for branch in branches]
        read = bool(rows or branches) or any(sequence.embedding is not None for sequence, _ in work)
        batch = Batch.build(parts, [self._context(sequence) for sequence, _ in work] if known else (), read)
        try:
            hidden = self.runner.forward(batch)
        except TierFailure as error:
            settle(branches, self.pool)
            return self._give_up([sequence for sequence, _ in work], error)
        self.count["steps"] += 1
        self.count["forward_tokens"] += int(batch.tokens.size)
        for (sequence, count), start in zip(work, batch.query_start.tolist(), strict=False):
            if sequence.embedding is not None:
                for row in self.runner.normed(hidden[start : start + count]):
                    sequence.embedding += row
        for at in range(0, len(rows), HEAD_ROWS):
            group = rows[at : at + HEAD_ROWS]
            logits = self.runner.logits(hidden[[row for row, _, _ in group]])
            for line, (_, sequence, position) in zip(logits, group, strict=True):
                _read(sequence, position, line)
        for branch, start in zip(branches, batch.query_start.tolist()[len(work) :], strict=False):
            self._read_branch(branch, hidden[start + 1 : start + 1 + len(branch.guess)])
        settle(branches, self.pool)
        return [output for sequence, count in work if (output := self._advance(sequence, count)) is not None]

    @staticmethod
    def _rows(sequence: Sequence, count: int, start: int) -> list[tuple[int, Sequence, int]]:
        """Those of a step's rows, from ``start`` on, whose logits are wanted: (row, sequence, position)."""
        if sequence.embedding is not None:
            return []
        first, last = max(sequence.first_row(), sequence.computed), sequence.computed + count
        if sequence.limit == sequence.prompt_len:  # max_tokens = 0: nothing follows the last token
            last = min(last, sequence.prompt_len - 1)
        return [(start + position - sequence.computed, sequence, position) for position in range(first, last)]

    def _begin_again(self, error: KVLost) -> None:
        """All KV is gone: every sequence starts over behind the tokens it has, with the same bits."""
        _log.warning("%s; %d requests compute their KV again", error.message, len(self.running))
        self.count["attention_workers_lost"] += 1
        if self.shared is not None:
            self.shared.forget()
        for sequence in list(self.running.values()):
            self._preempt(sequence)
        for sequence in self.waiting.values():
            self._release(sequence)
        self.sessions.clear()
        self.pool.reset()
        assert isinstance(self.runner, Repairable)
        self.runner.repair()

    def _read_branch(self, branch: Branch, hidden: F32) -> None:
        """Go on behind a branch as far as it is what was chosen."""
        sequence = branch.sequence
        if not branch.holds(1) or sequence.finish is not None:
            return
        for count, line in enumerate(self.runner.logits(hidden), 1):
            if not branch.holds(count) or sequence.finish is not None:
                return
            branch.won = True
            sequence.reached = branch.first + 1 + len(branch.guess)
            _choose(sequence, branch.first + count, line)

    def _give_up(self, sequences: list[Sequence], error: TierFailure) -> list[Output]:
        """End the sequences of a step that could not read their KV; whatever was cached may be lost too."""
        for sequence in sequences:
            del self.running[sequence.request.id]
            self._release(sequence)
        self.pool.clear()
        return [
            Output(sequence.request.id, finish_reason="error", error=error.message, usage=sequence.usage())
            for sequence in sequences
        ]

    def _advance(self, sequence: Sequence, count: int) -> Output | None:
        """Book a step: how far the KV is valid now, what became shareable, whether it is over."""
        if sequence.drafts:
            held = max(sequence.fresh - 1, 0)
            made = len(sequence.drafts) + sum(map(len, sequence.branches))
            sequence.draft_tokens += made
            sequence.accepted_tokens += held
            self.count["draft_tokens"] += made
            self.count["accepted_tokens"] += held
            if sequence.drafter is not None:
                sequence.drafter.observe(len(sequence.drafts), held, len(sequence.tokens))
        # The KV of the last chosen token, and of drafts that did not hold, is not there yet.
        reached = sequence.reached or sequence.computed + count
        sequence.computed = min(reached, len(sequence.tokens) - (sequence.fresh > 0))
        self.count["generated_tokens"] += sequence.fresh
        sequence.fresh = sequence.reached = 0
        if sequence.drafts:
            sequence.drafts, sequence.branches = [], []
        self._publish(sequence)
        if sequence.finish is None and sequence.limit == sequence.prompt_len == sequence.computed:
            sequence.finish = "length"
        output = sequence.output()
        if sequence.finish is not None:
            self._end(sequence)
        return output

    def _end(self, sequence: Sequence) -> None:
        request = sequence.request
        self.count["prompt_tokens"] += sequence.prompt_len
        del self.running[request.id]
        if request.session is not None and not sequence.stale:
            kept = sequence.tokens[: sequence.computed]
            self.sessions.keep(request.salt, request.session, kept, sequence.root, sequence.table.blocks)
        else:
            self._release(sequence)

    def _publish(self, sequence: Sequence) -> None:
        # What sparse attention computed serves nobody who would compute it exactly.
        whole = min(sequence.computed, sequence.exact) if self._attention.exact_prompts else sequence.computed
        table, full = sequence.table, whole // BLOCK_SIZE
        if sequence.stale or table.published >= full:
            return
        keys = self._keys(sequence)
        for i in range(table.published, full):
            self.pool.publish(table.blocks[i], keys[i], sequence.tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE])
            if self.shared is not None:
                self.shared.note(table.blocks[i], keys[i], keys[0])
        table.published = full

    def _fetching(self, sequence: Sequence, keys: list[bytes], found: list[int], computing: bool = False) -> bool:
        """Whether what the shared pool has behind ``found`` is on its way; asked for once, unless computed here."""
        if self.shared is None:
            return False
        name = sequence.request.id
        if not sequence.looked_up and len(found) < len(keys):
            sequence.looked_up = computing or self.shared.ask(name, keys, sequence.tokens, found)
            return not computing
        return self.shared.brings(name)

    def _book_arrivals(self) -> None:
        came = self.shared.settle() if self.shared is not None else {}
        for name, count in came.items():
            if name in self.waiting and self.waiting[name].moved is None:
                self.count["pool_hit_tokens"] += count * BLOCK_SIZE

    def _rejoin(self, sequence: Sequence, state: State) -> bool:
        """Join an imported sequence and its KV, if all of it can be had; False while some is on its way."""
        keys = self._keys(sequence)[: state.skipped]
        head = self.pool.match(keys, sequence.tokens)
        if self._fetching(sequence, keys, head):
            return False
        sequence.moved = None
        self.pool.hold(head)
        if len(head) < state.skipped or len(state.blocks) > self.pool.free:
            self.pool.release(head)
            return True
        tail = self.pool.take(len(state.blocks))
        self.runner.write_blocks(tail, state.blocks)
        sequence.table.blocks, sequence.computed = head + tail, state.computed
        return True

    def _keys(self, sequence: Sequence) -> list[bytes]:
        if len(sequence.keys) < len(sequence.tokens) // BLOCK_SIZE:
            sequence.keys = block_keys(sequence.tokens, BLOCK_SIZE, sequence.root, sequence.keys)
        return sequence.keys

    def _context(self, sequence: Sequence) -> Context:
        sequence.context.keys = None if sequence.stale else self._keys(sequence)
        return sequence.context

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.table.blocks)
        sequence.context.kept.clear()
        sequence.sketch.kept.clear()
        sequence.table = BlockTable()
        sequence.computed = 0


def _read(sequence: Sequence, position: int, logits: F32) -> None:
    """Use the logits at ``position``: score the prompt's next token, or choose the output's."""
    if position < sequence.prompt_len - 1:
        k = sequence.request.params.prompt_logprobs or 0
        sequence.prompt_logprobs.append(token_logprob(logits, sequence.tokens[position + 1], k))
        return
    if sequence.finish is not None or position != len(sequence.tokens) - 1:
        return
    if sequence.fresh and sequence.drafts[sequence.fresh - 1] != sequence.tokens[-1]:
        return  # this row was computed behind a draft that did not hold
    _choose(sequence, position, logits)


def _choose(sequence: Sequence, position: int, logits: F32) -> None:
    """The token behind ``position``."""
    generated = sequence.generated
    sampled = sequence.sampler.sample(logits, position + 1, generated, sequence.mask())
    while not sequence.admits(sampled.token):
        sampled = sequence.sampler.sample(logits, position + 1, generated, sequence.mask())
    sequence.fresh += 1
    sequence.append(sampled)
