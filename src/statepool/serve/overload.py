"""Whom to refuse when there is more than the cluster can serve: admission as pure policies (Mooncake, section 7).

A request that is refused on arrival costs nothing; one that a decode node refuses has wasted its prefill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from statepool.serve.costs import NodeCosts
from statepool.serve.snapshot import SLO, Ask, Completion, Decision, Snapshot

__all__ = ["CheckBoth", "EarlyPredicted", "EarlyRejection", "Everyone", "Foresight", "LateCheck", "Patience"]

ROOM = 0.97
"""How full a decode node's memory may be when a request joins; what runs there grows."""


def _no_room(costs: NodeCosts, slo: SLO, tokens: float, batch: float, held: float) -> str:
    if held + tokens > costs.vram_tokens * ROOM:
        return "no room for its keys and values"
    if costs.decode_s(round(batch) + 1, round(held + tokens)) > slo.tbt_s:
        return "tokens would come too slowly"
    return ""


def _too_late(ask: Ask, decision: Decision, slo: SLO) -> str:
    return "its first token would come too late" if ask.waited_s + decision.ttft_s > slo.ttft_s else ""


@dataclass(frozen=True, slots=True)
class Everyone:
    """Nobody is refused."""

    wants_underway: bool = False

    def refusal(self, ask: Ask, decision: Decision, now: Snapshot) -> str:
        """Never."""
        return ""

    def ask_again_s(self, ask: Ask, decision: Decision) -> float:
        """Never."""
        return 0.0

    def late_refusal(self, tokens: int, batch: int, held: int) -> str:
        """Never."""
        return ""

    def told(self, ended: Completion) -> Everyone:
        """Itself: it does not learn."""
        return self


@dataclass(frozen=True, slots=True)
class LateCheck:
    """The baseline: the prefill pool is checked on arrival, the decode node when the prefill is done."""

    costs: NodeCosts
    slo: SLO
    wants_underway: bool = False

    def refusal(self, ask: Ask, decision: Decision, now: Snapshot) -> str:
        """Why, from the estimated time to first token."""
        return _too_late(ask, decision, self.slo)

    def ask_again_s(self, ask: Ask, decision: Decision) -> float:
        """Never: what is refused is refused."""
        return 0.0

    def late_refusal(self, tokens: int, batch: int, held: int) -> str:
        """Why, from the node's state when the prefill is done."""
        return _no_room(self.costs, self.slo, tokens, batch, held)

    def told(self, ended: Completion) -> LateCheck:
        """Itself: it does not learn."""
        return self


@dataclass(frozen=True, slots=True)
class CheckBoth(LateCheck):
    """Algorithm 1's test: refuse on arrival if either predicted time breaks the SLO, prefills on their way included."""

    def refusal(self, ask: Ask, decision: Decision, now: Snapshot) -> str:
        """Why, from the decision's own estimates."""
        if late := _too_late(ask, decision, self.slo):
            return late
        return "tokens would come too slowly" if decision.tbt_s > self.slo.tbt_s else ""


@dataclass(frozen=True, slots=True)
class EarlyRejection(LateCheck):
    """Early rejection: the decode pool, as it is now, is checked on arrival too. It lags by the time of a prefill."""

    def refusal(self, ask: Ask, decision: Decision, now: Snapshot) -> str:
        """Why, from the decode node as it is now."""
        if late := _too_late(ask, decision, self.slo):
            return late
        pool, node = now.decode, decision.decode
        return _no_room(self.costs, self.slo, ask.tokens, int(pool.batch[node]), int(pool.tokens[node]))


@dataclass(frozen=True, slots=True)
class EarlyPredicted(LateCheck):
    """Early rejection by prediction: each answer is assumed to take ``decode_time_s`` (Mooncake, system level).

    The decode pool is checked as it will be when the prefill is done: what joins until then is added, what has run for
    longer than that is gone, and what is left is spread evenly over the nodes.
    """

    decode_time_s: float = 15.0
    wants_underway: bool = True

    def refusal(self, ask: Ask, decision: Decision, now: Snapshot) -> str:
        """Why, from the decode pool as it is expected to be."""
        if late := _too_late(ask, decision, self.slo):
            return late
        then = decision.ttft_s
        there = [each for each in now.decode.underway if -self.decode_time_s < each.in_s - then <= 0]
        nodes = len(now.decode.batch)
        held = sum(each.tokens for each in there) / nodes
        return _no_room(self.costs, self.slo, ask.tokens, len(there) / nodes, held)


_LENGTHS = np.array(
    [0, 4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048, 4096, 8192]
)
"""Borders of answer lengths, in tokens."""


@dataclass(frozen=True, slots=True)
class Foresight(LateCheck):
    """Ours: admits what is likely to fit when its prefill ends, given how long answers turn out to be.

    How long a running answer still runs is read off the lengths of those that ended (a survival curve), so that one
    of 300 tokens is not expected to end like a new one. The prediction has a mean and a spread, and so the chance that
    the request fits. It is refused if the prefill expected to be wasted costs more than ``stake_s`` seconds, so that a
    cheap one may take a risk that an expensive one may not. ``preference`` keeps room for several short prompts rather
    than for one long: a prompt counts for as many times its distance from the mean more, or less, than it is.
    """

    preference: float = 8.0
    stake_s: float = 0.1
    wants_underway: bool = True
    ended: tuple[float, ...] = ()
    """Answers that ended, by length."""
    mean_prompt: float = 8000.0

    def refusal(self, ask: Ask, decision: Decision, now: Snapshot) -> str:
        """Why, from the decode node as it is expected to be."""
        if late := _too_late(ask, decision, self.slo):
            return late
        there = [each for each in now.decode.underway if each.decode == decision.decode]
        if not there:
            return ""
        in_s, tokens, written = np.array([(each.in_s, each.tokens, each.written) for each in there]).T
        pool, node = now.decode, decision.decode
        step_s = self.costs.decode_s(max(1, int(pool.batch[node])), int(pool.tokens[node]))
        # One line per moment, one column per request.
        runs_s = self._moments(ask, decision, in_s)[:, None] - np.maximum(in_s, 0.0)
        # A step without a duration is one that nobody has measured yet: nobody is expected to get on, or to end.
        steps = np.maximum(runs_s, 0.0) / step_s if step_s > 0 else np.zeros_like(runs_s)
        alive = np.where(runs_s >= 0, self._survival(written + steps) / self._survival(written), 0.0)
        held = (alive * (tokens + steps)).sum(axis=1)
        spread = np.sqrt((alive * (1 - alive) * (tokens + steps) ** 2).sum(axis=1)) + 1.0
        counted = ask.tokens + self.preference * (ask.tokens - self.mean_prompt)
        spare = self.costs.vram_tokens * ROOM - held - counted
        fits = 0.5 * math.erfc(-float((spare / spread).min()) / math.sqrt(2))
        if (1 - fits) * decision.prefill_s > self.stake_s * fits:
            return "no room for its keys and values is expected"
        batch = round(float(alive[0].sum()))
        slow = self.costs.decode_s(batch + 1, round(float(held[0])) + ask.tokens) > self.slo.tbt_s
        return "tokens would come too slowly" if slow else ""

    def _moments(self, ask: Ask, decision: Decision, others_s: np.ndarray) -> np.ndarray:
        """When there must be room: when it joins, the others joining after ``others_s``."""
        return np.array([decision.ttft_s])

    def told(self, ended: Completion) -> Foresight:
        """The policy that has seen one more answer's length."""
        counts = list(self.ended or (0.0,) * len(_LENGTHS))
        counts[int(_LENGTHS.searchsorted(ended.output, side="right")) - 1] += 1
        mean = self.mean_prompt + (ended.prompt - self.mean_prompt) / 1000
        return replace(self, ended=tuple(counts), mean_prompt=mean)

    def _survival(self, length: np.ndarray) -> np.ndarray:
        """The share of answers longer than ``length``."""
        # Before any answer has ended, lengths are taken to be exponential around 256 tokens.
        prior = 20 * np.exp(-_LENGTHS / 256.0)
        longer = np.cumsum((self.ended or (0.0,) * len(_LENGTHS))[::-1])[::-1] + prior
        share: np.ndarray = np.interp(length, _LENGTHS, longer / longer[0])
        return share


ASKS = 30
"""How often at most a request asks, over all of its promised time to first token."""


@dataclass(frozen=True, slots=True)
class Patience(Foresight):
    """Ours: what is not likely to fit now is kept while its first token can still come in time, and asks again.

    Who can wait needs less room kept for short prompts. Every ask comes a fixed part of the promise after the one
    before, so that there are at most ``ASKS``. A finished prefill that finds no room waits in the same way, and that is
    counted on: room must be there within a part of the promise after the prefill, so that somebody is there to take it
    whenever an answer ends.
    """

    preference: float = 6.0
    wait_share: float = 1 / 12
    """Most of the promised time to first token that a finished prefill may have to wait for room."""

    def _moments(self, ask: Ask, decision: Decision, others_s: np.ndarray) -> np.ndarray:
        """When it joins at the latest, and when each later one does: room promised to a long prefill is not free."""
        left_s = self.slo.ttft_s - ask.waited_s - decision.ttft_s
        joins_s = decision.ttft_s + min(self.slo.ttft_s * self.wait_share, left_s / 2)
        return np.append(joins_s, others_s[others_s > joins_s])

    def ask_again_s(self, ask: Ask, decision: Decision) -> float:
        """A part of the promise, if enough is left to be served after it."""
        pause_s = self.slo.ttft_s / ASKS
        return pause_s if ask.waited_s + pause_s + decision.ttft_s <= self.slo.ttft_s else 0.0
