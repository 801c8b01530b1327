"""Which sequences get how many tokens in the next step: a pure function of a snapshot.

One rule covers chunked prefill, prefix hits, draft verification and resumption: a sequence has
``computed`` tokens in the KV cache out of ``total`` (prompt, output and drafts), and a step hands it some of
the difference. Running sequences come first, so a long prefill never stalls a decode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from statepool.kv.layout import BLOCK_SIZE


class SequenceView(msgspec.Struct, frozen=True, gc=False):
    """What the scheduler may know of one sequence.

    ``hit_tokens`` and ``hit_blocks`` count a waiting sequence's prefix found in the pool;
    ``hit_free`` how many of those blocks nobody holds now (holding them uses up free blocks).
    ``freeable`` is what preempting a running sequence would give back, if the step may run short of blocks.
    """

    id: str
    priority: int
    arrival: int
    total: int
    computed: int = 0
    blocks: int = 0
    freeable: int = 0
    hit_tokens: int = 0
    hit_blocks: int = 0
    hit_free: int = 0
    decoding: bool = False
    """Only its newest token, and drafts behind it, are to be computed: somebody may be reading along."""
    blocked: bool = False
    """Wait, but keep the place: a sibling is just computing this sequence's prefix."""

    @property
    def rank(self) -> tuple[int, int]:
        """Order of service; the largest is preempted first."""
        return (self.priority, self.arrival)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of the engine between two steps."""

    running: Sequence[SequenceView]
    waiting: Sequence[SequenceView]
    free_blocks: int
    max_tokens: int
    max_seqs: int
    unseen: int = 0
    """Sequences that wait behind all of ``waiting`` and were not looked at."""

    @property
    def prefill_cap(self) -> int:
        """Most tokens of one sequence in a step, so that one prefill leaves room for others."""
        alone = len(self.running) + len(self.waiting) + self.unseen == 1
        return self.max_tokens if alone else max(self.max_tokens // 2, 1)

    @property
    def prefill_budget(self) -> int:
        """Most prompt tokens of a step: a whole step of them would hold up all who decode in it.

        One seat's share of the step for each sequence by which those without a first token outnumber those who wait for
        their next, and at least one.
        """
        decoding = sum(view.decoding for view in self.running)
        if not decoding:
            return self.max_tokens
        waiting = sum(not view.blocked for view in self.waiting) + self.unseen
        starting = len(self.running) - decoding + min(waiting, self.max_seqs - len(self.running))
        return self.max_tokens // self.max_seqs * max(starting - decoding, 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """``work`` lists (id, tokens) in batch order; ``admit`` those of it that were waiting."""

    work: tuple[tuple[str, int], ...]
    admit: tuple[str, ...]
    preempt: tuple[str, ...]
    starved: bool
    """Somebody had to be preempted or left waiting for want of blocks."""


def schedule(snapshot: Snapshot) -> Plan:
    """Plan one step. Deterministic; holds no state."""
    free, budget = snapshot.free_blocks, snapshot.max_tokens
    queue = deque(sorted(snapshot.running, key=lambda view: view.rank))
    work: list[tuple[str, int]] = []
    preempted: list[SequenceView] = []
    cap, prompts = snapshot.prefill_cap, snapshot.prefill_budget
    while queue and budget > 0:
        view = queue.popleft()
        tokens = min(view.total - view.computed, cap, budget, budget if view.decoding else prompts)
        if tokens <= 0:
            continue
        need = _blocks(view.computed + tokens) - view.blocks
        while need > free and queue:
            victim = queue.pop()
            preempted.append(victim)
            free += victim.freeable
        if need > free:
            preempted.append(view)
            free += view.freeable
            break
        free -= max(need, 0)
        budget -= tokens
        prompts -= 0 if view.decoding else tokens
        work.append((view.id, tokens))
    starved = bool(preempted)
    admitted: list[str] = []
    if not preempted:
        seats = snapshot.max_seqs - len(snapshot.running)
        for view in sorted(snapshot.waiting, key=lambda view: view.rank):
            if min(budget, prompts) <= 0 or len(admitted) >= seats:
                break
            if view.blocked:
                continue
            tokens = min(view.total - view.hit_tokens, cap, budget, prompts)
            need = _blocks(view.hit_tokens + tokens) - view.hit_blocks + view.hit_free
            if need > free:
                starved = True
                break
            free -= need
            budget -= tokens
            prompts -= tokens
            work.append((view.id, tokens))
            admitted.append(view.id)
    return Plan(tuple(work), tuple(admitted), tuple(view.id for view in preempted), starved)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)
