"""The conductor: which nodes prefill and decode a request, from a snapshot (Mooncake, Algorithm 1).

``Conductor`` joins a placement with an admission; both are pure, so the same objects steer a cluster and a simulator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from statepool.serve.costs import NodeCosts
from statepool.serve.snapshot import Admission, Ask, Completion, Decision, DecodePool, Placement, PrefillPool, Snapshot

__all__ = ["CacheCentric", "Conductor", "choose_decode"]


@dataclass(frozen=True, slots=True)
class Conductor:
    """Places a request, then asks whether it may come in."""

    placement: Placement
    admission: Admission

    def decide(self, ask: Ask, now: Snapshot) -> Decision:
        """The decision for ``ask``; ``refused`` says why if it may not come in now, ``ask_again_s`` if it may later."""
        decision = self.placement.place(ask, now)
        reason = self.admission.refusal(ask, decision, now)
        if not reason:
            return decision
        return replace(
            decision,
            refused=reason,
            retry_after_s=round(max(1.0, decision.ttft_s / 2), 1),
            ask_again_s=self.admission.ask_again_s(ask, decision),
        )

    def told(self, ended: Completion) -> Conductor:
        """The conductor that has also seen how ``ended`` went."""
        admission = self.admission.told(ended)
        return self if admission is self.admission else replace(self, admission=admission)


def choose_decode(ask: Ask, pool: DecodePool, costs: NodeCosts) -> tuple[int, float]:
    """The decode node of least predicted time between tokens that has room, and that time in seconds.

    What is on its way from prefill counts, or ten requests that arrive together would all go to one node. Without
    room anywhere, the node with most room is answered, with an infinite time.
    """
    batch = pool.batch + pool.coming + 1
    tokens = pool.tokens + pool.coming_tokens + ask.tokens
    times = np.where(tokens <= costs.vram_tokens, costs.decode_many_s(batch, tokens), np.inf)
    best = int(times.argmin())
    if math.isinf(times[best]):
        best = int(tokens.argmin())
    return best, float(times[best])


@dataclass(frozen=True, slots=True)
class CacheCentric:
    """Algorithm 1: least predicted time to first token over queue, prefill and fetching the longest prefix.

    A node recomputes what it lacks unless the best prefix elsewhere is more than ``threshold`` times its own; no own
    prefix is an infinite ratio. Mooncake (2407.00079) leaves the threshold unpublished. ``threshold=inf`` never
    fetches: cache-aware dispatch on local caches.
    """

    costs: NodeCosts
    threshold: float = 1.3
    chunk_tokens: int = 0
    layers_at_once: int = 0
    inline: bool = False

    def place(self, ask: Ask, now: Snapshot) -> Decision:
        """The nodes for ``ask``; a line is served in order of arrival."""
        pool = now.prefill
        source = int(pool.ready.argmax())
        best = int(pool.ready[source])
        fetch = self._fetches(pool, best)
        reuse = np.where(fetch, best, pool.held)
        # A copy waits for the source's link and runs beside the queue of the target.
        copy_s = np.where(fetch, pool.link_s[source] + (best - pool.held) * self.costs.transfer_s(1), 0.0)
        prefill_s = self.costs.prefill_many_s(ask.tokens, np.minimum(reuse, ask.tokens - 1))
        ttft_s = np.maximum(copy_s, pool.queue_s) + prefill_s
        chosen = int(ttft_s.argmin())
        decode, tbt_s = choose_decode(ask, now.decode, self.costs)
        fetched = int(best - pool.held[chosen]) if fetch[chosen] else 0
        return Decision(
            prefill=chosen,
            decode=decode,
            reuse=min(int(reuse[chosen]), ask.tokens - 1),
            source=source if fetched else -1,
            fetched=fetched,
            rank=ask.at,
            prefill_s=float(prefill_s[chosen]),
            ttft_s=float(ttft_s[chosen]),
            tbt_s=tbt_s,
        )

    def _fetches(self, pool: PrefillPool, best: int) -> np.ndarray:
        if self.threshold == math.inf:
            return np.zeros(len(pool.held), dtype=bool)
        empty = pool.held == 0
        return np.where(empty, best > 0, best > pool.held * max(1.0, self.threshold))
