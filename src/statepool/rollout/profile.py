"""What a step of an engine costs: measured for several batches, with and without drafts, and for long texts."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.rollout.budget import StepCost

__all__ = ["Profile", "measure"]

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DRAFTS = (0, 1, 3, 7)
_STEPS = 12
_SETTLE = 4
"""Steps before those that are measured: a long prompt may be computed in parts."""
_SHORT = 4
_LONG = 256
"""Tokens of a long text, or as many as the engine's KV holds of the batch."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Median seconds of a step for (sequences, draft tokens of each), a plane through them, and the price of KV."""

    points: tuple[tuple[int, int, float], ...]
    cost: StepCost
    context: float = 0.0
    """Seconds per token of KV that a step reads."""

    def as_json(self) -> dict[str, Any]:
        """``base``, ``row`` and the table are the step times of a simulation, where every sequence is a row."""
        return {
            "base": self.cost.base,
            "row": self.cost.row + self.cost.sequence,
            "context": self.context,
            "table": [[batch, seconds] for batch, drafts, seconds in self.points if drafts == 0],
            "sequence": self.cost.sequence,
            "draft": self.cost.row,
            "points": [list(point) for point in self.points],
        }

    def text(self) -> str:
        """For people."""
        lines = [f"{batch:4} sequences, {drafts} drafts each: {s * 1e3:8.3f} ms" for batch, drafts, s in self.points]
        cost = self.cost
        fit = f"{cost.base * 1e3:.3f} ms + {cost.sequence * 1e6:.1f} us a sequence + {cost.row * 1e6:.1f} us a row"
        return "\n".join([*lines, f"{fit} + {self.context * 1e9:.0f} ns a token of KV"])


class _Fixed:
    """Drafts of a fixed length that never hold, so that every step verifies them all."""

    def __init__(self, length: int) -> None:
        self._length = length

    def draft(self, sequences: list[Any], keys: Any) -> None:
        """See ``engine.loop.BatchDrafter``."""
        for sequence in sequences:
            sequence.drafts = [(sequence.tokens[-1] + 1 + i) % 7 + 3 for i in range(self._length)]


def measure(config: EngineConfig) -> Profile:
    """Measure an engine of ``config``: takes some seconds."""
    engine = Engine(config)
    points, prices = [], []
    room = engine.pool.total * 16
    for batch in _BATCHES:
        if batch > config.max_seqs or batch * (_STEPS + 24) > room:
            break
        for drafts in _DRAFTS:
            if batch * (1 + drafts) > config.max_batched_tokens:
                break
            points.append((batch, drafts, _step(engine, batch, drafts)))
        long = min(_LONG, room // batch - 2 * _STEPS - 16)
        if batch * long <= config.max_batched_tokens and long > _SHORT + _STEPS:
            short = next(seconds for size, drafts, seconds in points if (size, drafts) == (batch, 0))
            prices.append((_step(engine, batch, 0, long) - short) / (batch * (long - _SHORT)))
    return Profile(tuple(points), _fit(points), max(statistics.median(prices), 0.0) if prices else 0.0)


def _step(engine: Engine, batch: int, drafts: int, prompt: int = _SHORT) -> float:
    params = SamplingParams(max_tokens=(_STEPS + _SETTLE + 1) * (drafts + 1), seed=1, ignore_eos=True, logprobs=0)
    names = [f"step-{i}" for i in range(batch)]
    engine.draft_with(None)
    for i, name in enumerate(names):
        engine.submit(Request(name, tuple(3 + (i + j) % 97 for j in range(prompt)), params, index=i))
    while engine.stats().waiting:
        engine.step()
    engine.draft_with(_Fixed(drafts))
    for _ in range(_SETTLE if prompt > _SHORT else 0):
        engine.step()
    times = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - began)
    for name in names:
        engine.abort(name)
    engine.draft_with(None)
    return statistics.median(times)


def _fit(points: list[tuple[int, int, float]]) -> StepCost:
    """Least squares with weights that make the error relative; no part is negative."""
    left = np.array([[1.0, batch, batch * (1 + drafts)] for batch, drafts, _ in points])
    right = np.array([seconds for *_, seconds in points])
    base, sequence, row = np.linalg.lstsq(left / right[:, None], np.ones(len(right)), rcond=None)[0]
    return StepCost(max(float(base), 1e-6), max(float(sequence), 0.0), max(float(row), 1e-7))
