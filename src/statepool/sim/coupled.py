"""The coupled baseline: nodes that prefill and decode in one batch, prefills first, as vLLM without chunks does.

While prompts wait and fit, a node runs prefills, and every answer on it stands still meanwhile; otherwise it runs a
decode step. Requests go to the node with the fewest tokens in hand.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from statepool.kv.eviction import LeastRecent
from statepool.serve.costs import NodeCosts
from statepool.serve.overload import ROOM
from statepool.serve.prefixes import PrefixIndex
from statepool.serve.snapshot import Ask, Decision, worst_tenth
from statepool.sim.nodes import BlockCache, Job
from statepool.sim.traces import BLOCK, Call

__all__ = ["run_coupled"]

_BATCHED_TOKENS = 8192
"""Prompt tokens of one prefill step; a longer prompt runs alone."""


class _Node:
    def __init__(self, costs: NodeCosts, cache: BlockCache | None) -> None:
        self.costs = costs
        self.cache = cache
        self.clock = 0.0
        self.waiting: deque[Job] = deque()
        self.active: list[tuple[int, int, Job]] = []
        self.ends: list[float] = []
        self.held = 0
        self.in_hand = 0

    def advance(self, until: float) -> None:
        """Run the steps that begin before ``until``."""
        while self.clock < until:
            if self.waiting and (self._fits(self.waiting[0]) or not self.active):
                self._prefill()
            elif self.active:
                self._decode()
            else:
                return

    def _fits(self, job: Job) -> bool:
        return self.held + job.ask.tokens <= self.costs.vram_tokens * ROOM

    def _prefill(self) -> None:
        batch: list[Job] = []
        tokens, seconds = 0, 0.0
        while self.waiting and (not batch or (self._fits(self.waiting[0]) and tokens < _BATCHED_TOKENS)):
            job = self.waiting[0]
            if self.cache is not None:
                job.reused = min(self.cache.held(job.keys) * BLOCK, job.ask.tokens - 1)
            if batch and tokens + job.ask.tokens - job.reused > _BATCHED_TOKENS:
                break
            self.waiting.popleft()
            batch.append(job)
            tokens += job.ask.tokens - job.reused
            spent_s = self.costs.prefill_s(job.ask.tokens, job.reused) - (self.costs.prefill[0] if seconds else 0.0)
            job.prefill_spent_s = spent_s
            seconds += spent_s
            self.held += job.ask.tokens
        self.clock += seconds
        for job in batch:
            job.first_token = self.clock
            if self.cache is not None:
                self.cache.use(job.keys, self.clock)
            job.join_index = len(self.ends)
            if job.call.output == 1:
                self._leave(job)
            else:
                heappush(self.active, (len(self.ends) + job.call.output - 1, job.ask.id, job))

    def _decode(self) -> None:
        self.clock += self.costs.decode_s(len(self.active), self.held)
        self.held += len(self.active)
        self.ends.append(self.clock)
        while self.active and self.active[0][0] == len(self.ends):
            self._leave(heappop(self.active)[2])

    def _leave(self, job: Job) -> None:
        times = [job.first_token, *self.ends[job.join_index : job.join_index + job.call.output - 1]]
        job.tbt_s = worst_tenth(np.diff(times))
        job.status = "done"
        self.held -= job.ask.tokens + job.call.output - 1
        self.in_hand -= job.ask.tokens


def run_coupled(
    calls: Sequence[Call], nodes: int, costs: NodeCosts, prefix_caching: bool = False, in_turn: bool = False
) -> list[Job]:
    """Let ``calls`` arrive at ``nodes`` coupled nodes; answers a job per call.

    With ``prefix_caching`` a node finds again what is in its own device memory, as far as that holds it. With
    ``in_turn`` nodes take turns, whatever they have in hand.
    """
    index: PrefixIndex[int] = PrefixIndex(nodes)
    blocks = costs.vram_tokens // BLOCK
    pool = [
        _Node(costs, BlockCache(node, blocks, LeastRecent(), index) if prefix_caching else None)
        for node in range(nodes)
    ]
    jobs = []
    for number, call in enumerate(calls):
        for node in pool:
            node.advance(call.at)
        chosen = number % nodes if in_turn else min(range(nodes), key=lambda place: (pool[place].in_hand, place))
        node = pool[chosen]
        if not node.waiting and not node.active:
            node.clock = max(node.clock, call.at)
        job = Job(call, Ask(number, call.at, call.prompt), Decision(chosen, chosen, 0), call.at)
        job.keys = call.keys[: call.prompt // BLOCK]
        node.waiting.append(job)
        node.in_hand += call.prompt
        jobs.append(job)
    for node in pool:
        node.advance(math.inf)
    return jobs
