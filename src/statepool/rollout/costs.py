"""What a step costs: seconds from the tokens it verifies and the KV it reads, by formula or from a profiled table."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from statepool.core.errors import InvalidConfig

__all__ = ["MOONLIGHT", "QWEN_VL", "StepTimes", "Workload"]


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step: ``base + row * rows + context * tokens of KV``.

    Args:
        base: of any step.
        row: per token that goes through the model (a sequence without drafts is one).
        context: per token of KV that is read.
        table: (rows, seconds) as profiled, by rising rows; takes the place of ``base + row * rows``.
        prefill: per token of a prompt, or of a prefix that is computed again; None: as ``row``.
    """

    base: float
    row: float
    context: float = 0.0
    table: tuple[tuple[int, float], ...] = ()
    prefill: float | None = None
    _rows: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.base < 0 or self.row < 0 or self.context < 0:
            raise InvalidConfig("step times must not be negative", param="profile")
        rows = tuple(int(at) for at, _ in self.table)
        if list(rows) != sorted(set(rows)):
            raise InvalidConfig("the table of step times must be by rising rows", param="profile")
        object.__setattr__(self, "_rows", rows)

    def rows(self, count: float) -> float:
        """Seconds of a step with ``count`` rows, without its KV."""
        if not self.table:
            return self.base + self.row * count
        at = bisect_left(self._rows, count)
        if at == 0:
            return self.table[0][1]
        if at == len(self.table):
            (x0, y0), (x1, y1) = self.table[-2:] if len(self.table) > 1 else ((0, 0.0), self.table[-1])
        else:
            (x0, y0), (x1, y1) = self.table[at - 1], self.table[at]
        return y0 + (y1 - y0) * (count - x0) / (x1 - x0)

    def span(self, steps: int, rows: float, tokens: float, growth: float) -> float:
        """Seconds of ``steps`` steps in a row, the first over ``tokens`` of KV, each adding ``growth``."""
        read = steps * tokens + growth * steps * (steps - 1) / 2
        return steps * self.rows(rows) + self.context * read

    def steps_within(self, seconds: float, rows: float, tokens: float, growth: float) -> int:
        """Fewest steps whose ``span`` is at least ``seconds``."""
        if seconds <= 0:
            return 0
        per, grow = self.rows(rows) + self.context * tokens, self.context * growth / 2
        linear = per - grow
        guess = seconds / linear if grow <= 1e-18 else (math.sqrt(linear**2 + 4 * grow * seconds) - linear) / (2 * grow)
        steps = max(int(guess), 0)
        while steps > 0 and self.span(steps - 1, rows, tokens, growth) >= seconds:
            steps -= 1
        while self.span(steps, rows, tokens, growth) < seconds:
            steps += 1
        return steps

    def prefill_seconds(self, tokens: int) -> float:
        """Seconds that computing ``tokens`` of a prefix adds to a step."""
        return tokens * (self.row if self.prefill is None else self.prefill)


@dataclass(frozen=True, slots=True)
class Workload:
    """A published iteration: its shape, and the step times fitted to the baseline's published run time."""

    name: str
    times: StepTimes
    instances: int
    capacity: int
    seats: int
    groups: int
    size: int
    mean: float
    most: int
    sigma: float
    seconds: float
    """Published run time of the baseline."""
    tail: float
    """Published share of it after 90 % of the requests are done."""
    prompt: int = 0


QWEN_VL = Workload("qwen-vl", StepTimes(0.04, 5e-5, 12e-9), 16, 1_000_000, 256, 600, 16, 7615, 40960, 0.9, 3957, 0.58)
MOONLIGHT = Workload(
    "moonlight", StepTimes(0.018, 1e-4, 1e-8, prefill=2e-5), 32, 500_000, 256, 400, 8, 22386, 65536, 0.8, 3910, 0.46
)


def accept_rate(expected: float, most: int = 8) -> float:
    """The chance per token that gives ``expected`` tokens a step (the bonus token included) with ``most`` drafts."""
    low, high = 0.0, 0.999999
    for _ in range(60):
        rate = (low + high) / 2
        if expected_tokens(rate, most) < expected:
            low = rate
        else:
            high = rate
    return (low + high) / 2


def expected_tokens(rate: float, drafts: int) -> float:
    """Tokens a step yields with ``drafts`` drafts of which each holds with chance ``rate`` if those before it did."""
    return float(drafts + 1) if rate >= 1.0 else (1 - rate ** (drafts + 1)) / (1 - rate)


def interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """Piecewise linear through ``points``, level beyond their ends."""
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return points[-1][1]
