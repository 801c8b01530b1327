"""How many draft tokens to verify: Seer's printed rule, the optimum over two classes, and the optimum token by token.

The printed rule (algorithm 1 of arXiv 2511.14617v3) moves budget by the *fall* of acceptance from one position to
the next; it is here as ``paper``, for comparison. Acceptance is cumulative throughout: the chance that a draft token
and all before it hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from statepool.rollout.costs import StepTimes
from statepool.rollout.state import Instance

__all__ = ["Calibration", "ClassPlanner", "StepCost", "optimal_lengths", "paper_lengths", "step_rate", "worthwhile"]

MOST = 8
WEIGHT = 2.0
"""What a token of a probe counts against one of another response (lambda)."""


def step_rate(
    times: StepTimes, beta: Sequence[float], probes: int, rest: int, high: int, low: int, weight: float = 1.0
) -> float:
    """Tokens per second of a step with ``high`` draft tokens for each probe and ``low`` for each other."""
    gain = weight * probes * (1 + sum(beta[:high])) + rest * (1 + sum(beta[:low]))
    return gain / times.rows(probes * (1 + high) + rest * (1 + low))


def paper_lengths(times: StepTimes, beta: Sequence[float], probes: int, rest: int) -> tuple[int, int]:
    """Algorithm 1 as printed: draft tokens of probes and of others. ``beta[i]``: acceptance of token i + 1."""
    batch = probes + rest
    if batch == 0:
        return 0, 0
    best = max(range(MOST + 1), key=lambda g: (step_rate(times, beta, 0, batch, 0, g), -g))
    budget = best * batch
    if budget < probes:
        return 0, 0
    at = (1.0, *beta, *([0.0] * (MOST + 1)))
    high, low, left = 1, 0, budget - probes
    while left > 0:
        gain_high = probes * (at[high] - at[high + 1])
        gain_low = rest * (at[low] - at[low + 1])
        if gain_high > WEIGHT * gain_low and high < MOST and left >= probes:
            high, left = high + 1, left - probes
        elif rest > 0 and low < MOST and left >= rest:
            low, left = low + 1, left - rest
        else:
            break
    return high, low


def optimal_lengths(
    times: StepTimes, beta: Sequence[float], probes: int, rest: int, weight: float = WEIGHT
) -> tuple[int, int]:
    """The pair with the most weighted tokens per second: each length for probes with the best for the others."""
    best, found = (0, 0), -1.0
    for high in range(MOST + 1 if probes else 1):
        for low in range(MOST + 1 if rest else 1):
            rate = step_rate(times, beta, probes, rest, high, low, weight)
            if rate > found * (1 + 1e-12):
                best, found = (high, low), rate
    return best


class ClassPlanner:
    """Draft lengths by class, for ``Core``.

    Args:
        times: of a step.
        beta: cumulative acceptance by position.
        rule: ``paper`` or ``optimal``.
    """

    def __init__(self, times: StepTimes, beta: Sequence[float], rule: str = "optimal") -> None:
        self._times, self._beta = times, tuple(beta)
        self._choose = paper_lengths if rule == "paper" else optimal_lengths

    def plan(self, instance: Instance, probes: int, rest: int) -> tuple[int, int, int]:
        """See ``DraftPlanner.plan``."""
        high, low = self._choose(self._times, self._beta, probes, rest)
        return high, low, 1


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of an engine's step, up to a factor: ``base + sequence * B + row * rows``.

    Its defaults fit the bundled model on one core; ``statepool rollout calibrate`` measures an engine.
    """

    base: float = 6e-5
    sequence: float = 9e-6
    row: float = 9e-6


def worthwhile(chances: Sequence[Sequence[float]], batch: int, cost: StepCost) -> list[int]:
    """Draft tokens to keep of each draft, so that a step of ``batch`` sequences gives the most tokens per second.

    ``chances`` fall along each draft, so the tokens taken by falling chance are a beginning of every draft: with any
    number of tokens this is the best choice, and the number is the best of all.
    """
    falling = sorted([chance for each in chances for chance in each], reverse=True)
    gained, fixed = float(batch), cost.base + cost.sequence * batch
    count, best = 0, gained / (fixed + cost.row * batch)
    for number, chance in enumerate(falling, 1):  # not by NumPy: there are a few, before every step
        gained += chance
        rate = gained / (fixed + cost.row * (batch + number))
        if rate > best:
            count, best = number, rate
    if count == 0:
        return [0] * len(chances)
    least = falling[count - 1]
    kept = [sum(chance > least for chance in each) for each in chances]
    left = count - sum(kept)
    for i, each in enumerate(chances):
        while left and kept[i] < len(each) and each[kept[i]] >= least:
            kept[i] += 1
            left -= 1
    return kept


class Calibration:
    """From what a tree says of a token's chance to how often such tokens held of late.

    A tree with one place says 1; how far that is true is learnt here.
    """

    _STEPS = 16
    _START = 4.0
    _MEMORY = 400.0

    def __init__(self) -> None:
        self._seen = [self._START] * (self._STEPS + 1)
        self._held = [self._START * max(i / self._STEPS - 0.1, 0.02) for i in range(self._STEPS + 1)]
        self._bins: dict[float, int] = {}

    def of(self, chances: Sequence[float]) -> list[float]:
        """Chances that are cumulative along one path, corrected."""
        found = []
        before, product = 1.0, 1.0
        for chance in chances:
            at = int(chance / before * self._STEPS + 0.5)
            product *= self._held[at] / self._seen[at]
            found.append(product)
            self._bins[product] = at
            before = chance
        return found

    def observe(self, chances: Sequence[float], held: int) -> None:
        """The first ``held`` tokens of a draft held, the next did not; ``chances`` are those of ``of``."""
        for i, chance in enumerate(chances[: held + 1]):
            at = self._bins.get(chance)
            if at is None:
                continue
            self._seen[at] += 1
            self._held[at] += i < held
            if self._seen[at] > self._MEMORY:
                self._seen[at] /= 2
                self._held[at] /= 2
        if len(self._bins) > 4096:
            self._bins.clear()
