"""Ways to place a request that others use, as the baselines that the conductor is measured against."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from statepool.serve.conductor import choose_decode
from statepool.serve.costs import NodeCosts
from statepool.serve.snapshot import Ask, Decision, Snapshot

__all__ = ["KvRouter", "LeastLoad", "RandomNode", "RoundRobin"]


def _at(ask: Ask, now: Snapshot, node: int, costs: NodeCosts) -> Decision:
    """``ask`` on ``node`` with what that node holds."""
    reuse = min(int(now.prefill.held[node]), ask.tokens - 1)
    prefill_s = costs.prefill_s(ask.tokens, reuse)
    decode, tbt_s = choose_decode(ask, now.decode, costs)
    return Decision(
        prefill=node,
        decode=decode,
        reuse=reuse,
        rank=ask.at,
        prefill_s=prefill_s,
        ttft_s=float(now.prefill.queue_s[node]) + prefill_s,
        tbt_s=tbt_s,
    )


@dataclass(frozen=True, slots=True)
class RandomNode:
    """Any prefill node; the draw depends on the seed and the request's number alone."""

    costs: NodeCosts
    seed: int = 0
    chunk_tokens: int = 0
    layers_at_once: int = 0
    inline: bool = False

    def place(self, ask: Ask, now: Snapshot) -> Decision:
        """A random node."""
        draw = random.Random(f"{self.seed}/{ask.id}")
        return _at(ask, now, draw.randrange(len(now.prefill.queue_s)), self.costs)


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """One node after the other."""

    costs: NodeCosts
    chunk_tokens: int = 0
    layers_at_once: int = 0
    inline: bool = False

    def place(self, ask: Ask, now: Snapshot) -> Decision:
        """The next node."""
        return _at(ask, now, ask.id % len(now.prefill.queue_s), self.costs)


@dataclass(frozen=True, slots=True)
class LeastLoad:
    """The node whose queue ends first."""

    costs: NodeCosts
    chunk_tokens: int = 0
    layers_at_once: int = 0
    inline: bool = False

    def place(self, ask: Ask, now: Snapshot) -> Decision:
        """The least loaded node."""
        return _at(ask, now, int(now.prefill.queue_s.argmin()), self.costs)


@dataclass(frozen=True, slots=True)
class KvRouter:
    """The cost rule of NVIDIA Dynamo's router at temperature 0: ``weight`` x blocks to prefill + blocks in use.

    Both count what is queued on the node and what the request adds. It never refuses and never copies.
    """

    costs: NodeCosts
    weight: float = 1.0
    block: int = 512
    chunk_tokens: int = 0
    layers_at_once: int = 0
    inline: bool = False

    def place(self, ask: Ask, now: Snapshot) -> Decision:
        """The node of least cost."""
        pool = now.prefill
        fresh = pool.queued_tokens + ask.tokens - np.minimum(pool.held, ask.tokens)
        used = -(-(pool.queued_context + ask.tokens) // self.block)
        cost = self.weight * fresh / self.block + used
        return _at(ask, now, int(cost.argmin()), self.costs)
