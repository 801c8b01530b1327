"""Whom to refuse when there is more than the cluster can serve: admission as pure policies (Mooncake, section 7).

A request that is refused on arrival costs nothing; one that a decode node refuses has wasted its prefill.
"""

from __future__ import annotations

from dataclasses import dataclass

from statepool.serve.costs import NodeCosts
from statepool.serve.snapshot import SLO, Ask, Completion, Decision, Snapshot

__all__ = ["CheckBoth", "Everyone"]


@dataclass(frozen=True, slots=True)
class Everyone:
    """Nobody is refused."""

    wants_underway: bool = False

    def refusal(self, ask: Ask, decision: Decision, now: Snapshot) -> str:
        """Never."""
        return ""

    def late_refusal(self, tokens: int, batch: int, held: int) -> str:
        """Never."""
        return ""

    def told(self, ended: Completion) -> Everyone:
        """Itself: it does not learn."""
        return self


def _no_room(costs: NodeCosts, slo: SLO, tokens: int, batch: int, held: int) -> str:
    if held + tokens > costs.vram_tokens * 0.97:
        return "no room for its keys and values"
    if costs.decode_s(batch + 1, held + tokens) > slo.tbt_s:
        return "tokens would come too slowly"
    return ""


@dataclass(frozen=True, slots=True)
class CheckBoth:
    """Algorithm 1's test: refuse on arrival if either predicted time breaks the SLO."""

    costs: NodeCosts
    slo: SLO
    wants_underway: bool = False

    def refusal(self, ask: Ask, decision: Decision, now: Snapshot) -> str:
        """Why, from the decision's own estimates."""
        if decision.ttft_s > self.slo.ttft_s:
            return "its first token would come too late"
        return "tokens would come too slowly" if decision.tbt_s > self.slo.tbt_s else ""

    def late_refusal(self, tokens: int, batch: int, held: int) -> str:
        """Why, from the node's state when the prefill is done."""
        return _no_room(self.costs, self.slo, tokens, batch, held)

    def told(self, ended: Completion) -> CheckBoth:
        """Itself: it does not learn."""
        return self
