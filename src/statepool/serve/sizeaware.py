"""Placement that knows sizes: short prefills overtake long ones as far as promises allow, and copies are priced."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from statepool.serve.conductor import choose_decode
from statepool.serve.costs import NodeCosts
from statepool.serve.snapshot import Ask, Decision, Snapshot

__all__ = ["SizeAware"]


@dataclass(frozen=True, slots=True)
class SizeAware:
    """Lines in order of arrival + ``patience`` x prefill time, and the node where all wait least.

    A prefill gives way every ``chunk_tokens`` tokens, so that a short prompt waits for a piece of a long one, not for
    all of it. With patience 0 the order is that of arrival, with an infinite one the shortest goes first; between
    them, no prompt is overtaken by one that came more than ``patience`` times its prefill time later. A newcomer goes
    behind everyone whose promise it would break. Where to run, and whether to copy or to recompute, is decided by one
    sum: its own time to first token and the delay of those behind it.
    """

    costs: NodeCosts
    patience: float = 20.0
    chunk_tokens: int = 8192
    altruism: float = 1.0
    mix: float = 0.0
    margin_s: float = 0.5
    inline: bool = False
    """How much the delay of others counts beside one's own."""

    def place(self, ask: Ask, now: Snapshot) -> Decision:
        """The nodes for ``ask`` and its place in the line."""
        pool = now.prefill
        source = int(pool.ready.argmax())
        best = int(pool.ready[source])
        decode, tbt_s = choose_decode(ask, now.decode, self.costs)
        cheapest = float("inf")
        chosen: Decision | None = None
        count=len(pool.lines)-len(now.decode.batch) if self.inline else len(pool.lines)
        for node, line in enumerate(pool.lines):
            stretch = float(pool.stretch[node])
            if math.isinf(stretch): continue
            held = int(pool.held[node])
            for reuse in {held, max(best, held)}:
                fetched = reuse - held
                copy_s = float(pool.link_s[source]) + self.costs.transfer_s(fetched) if fetched else 0.0
                kept = min(reuse, ask.tokens - 1)
                prefill_s = stretch*self.costs.chunked_s(ask.tokens, kept, self.chunk_tokens)
                rank = max(ask.at + self.patience * prefill_s, math.nextafter(pool.after_rank[node], math.inf))
                place = int(line.ranks.searchsorted(rank, side="right"))
                promised = int(line.slack_s.searchsorted(prefill_s + self.margin_s))
                if promised > place:
                    place = promised
                    rank = float(np.nextafter(line.ranks[place - 1], np.inf))
                wait_s = max(float(pool.busy_s[node] + line.ahead_s[place]), copy_s)
                ttft_s = wait_s + prefill_s
                cost = ttft_s*(1-self.mix)+ self.mix*(max(float(pool.queue_s[node]), copy_s) + prefill_s) + prefill_s*self.altruism * (len(line.ranks) - place)
                if cost < cheapest:
                    cheapest = cost
                    chosen = Decision(
                        prefill=node,
                        decode=decode if node<count else node-count,
                        reuse=kept,
                        source=source if fetched else -1,
                        fetched=fetched,
                        rank=rank,
                        prefill_s=prefill_s/stretch,
                        ttft_s=ttft_s,
                        tbt_s=tbt_s,
                    )
        assert chosen is not None, "a pool has at least one node"
        return chosen
