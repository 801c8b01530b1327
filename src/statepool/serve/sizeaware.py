"""Placement that knows sizes: short prefills overtake long ones as far as promises allow, and copies are priced."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from statepool.serve.conductor import choose_decode
from statepool.serve.costs import NodeCosts
from statepool.serve.snapshot import Ask, Decision, PrefillPool, Snapshot

__all__ = ["SizeAware"]

_LOOK = 12
"""Nodes looked at closely for each of two reasons."""


@dataclass(frozen=True, slots=True)
class SizeAware:
    """Lines in order of arrival + ``patience`` x prefill time, and the node where all wait least.

    A prefill gives way every ``chunk_tokens`` tokens, so that a short prompt waits for a piece of a long one, not for
    all of it; or on prefill nodes after ``layers_at_once`` layers: a pass over the whole prompt can rest between layers
    at no cost, since the keys and values of those before are stored and what goes into the next is small.
    With patience 0 the order is that of arrival, with an infinite one the shortest goes first; between them, no prompt
    is overtaken by one that came more than ``patience`` times its prefill time later. A newcomer goes behind everyone
    whose promise it would break. Where to run, and whether to copy or to recompute, is decided by one sum: its own time
    to first token and the delay of those behind it.

    With ``inline``, decode nodes prefill too: what a step may take and its batch does not need goes to a prompt.
    """

    costs: NodeCosts
    patience: float = 2.0
    chunk_tokens: int = 8192
    layers_at_once: int = 0
    inline: bool = True
    margin_s: float = 0.5
    """Seconds of error that a promise allows for."""
    priority_s: float = 10.0
    """Seconds of waiting that one level of priority counts as."""

    def place(self, ask: Ask, now: Snapshot) -> Decision:
        """The nodes for ``ask`` and its place in the line."""
        pool = now.prefill
        source = int(pool.ready.argmax())
        best = int(pool.ready[source])
        decode, tbt_s = choose_decode(ask, now.decode, self.costs)
        prefill_nodes = len(pool.lines) - (len(now.decode.batch) if self.inline else 0)
        cheapest = math.inf
        chosen: Decision | None = None
        for node in self._candidates(ask, pool):
            held = int(pool.held[node])
            by_layers = node < prefill_nodes and 0 < self.layers_at_once < self.costs.layers
            chunk = 0 if by_layers else self.chunk_tokens
            for reuse in {held, max(best, held)}:
                cost, decision = self._at(ask, pool, node, min(reuse, ask.tokens - 1), source, reuse - held, chunk)
                if cost < cheapest:
                    cheapest = cost
                    beside = node - prefill_nodes
                    chosen = replace(decision, decode=decode if beside < 0 else beside, tbt_s=tbt_s)
        assert chosen is not None, "prefill nodes are always open"
        return chosen

    def _candidates(self, ask: Ask, pool: PrefillPool) -> list[int]:
        """The nodes worth a closer look: all of a small cluster, else the soonest with and without their lines."""
        open_nodes = np.flatnonzero(np.isfinite(pool.stretch))
        if len(open_nodes) > 2 * _LOOK:
            work_s = self.costs.prefill_many_s(ask.tokens, np.minimum(pool.held, ask.tokens - 1)) * pool.stretch
            soonest = [wait_s[open_nodes] + work_s[open_nodes] for wait_s in (pool.queue_s, pool.busy_s)]
            places = np.concatenate([np.argpartition(each, _LOOK)[:_LOOK] for each in soonest])
            open_nodes = open_nodes[np.unique(places)]
        found: list[int] = open_nodes.tolist()
        return found

    def _at(
        self, ask: Ask, pool: PrefillPool, node: int, reuse: int, source: int, fetched: int, chunk: int
    ) -> tuple[float, Decision]:
        """What running ``ask`` on ``node`` costs everyone, in seconds, and the decision it would be."""
        line, stretch = pool.lines[node], float(pool.stretch[node])
        copy_s = float(pool.link_s[source]) + self.costs.transfer_s(fetched) if fetched else 0.0
        work_s = self.costs.chunked_s(ask.tokens, reuse, chunk)
        prefill_s = stretch * work_s
        # Whoever computes blocks that it counts on must run before it.
        wanted = ask.at + self.patience * prefill_s - self.priority_s * ask.priority
        rank = max(wanted, math.nextafter(pool.after_rank[node], math.inf))
        place = int(line.ranks.searchsorted(rank, side="right"))
        promised = int(line.slack_s.searchsorted(prefill_s + self.margin_s))
        if promised > place:
            rank = math.nextafter(line.ranks[promised - 1], math.inf)
            place = int(line.ranks.searchsorted(rank, side="right"))
        ttft_s = max(float(pool.busy_s[node] + line.ahead_s[place]), copy_s) + prefill_s
        decision = Decision(
            prefill=node,
            decode=0,
            reuse=reuse,
            source=source if fetched else -1,
            fetched=fetched,
            rank=rank,
            prefill_s=work_s,
            ttft_s=ttft_s,
        )
        return ttft_s + prefill_s * (len(line.ranks) - place), decision
