"""Costs of the engines of this machine, learnt from what they just did: the conductor's estimates, calibrated on line.

A prefill engine serves prompts one after the other, so the time of one runs from the end of the one before it, or from
its own arrival. A decode step is a constant, a share per sequence and a share per token held, as in ``NodeCosts``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from statepool.core.errors import InvalidConfig
from statepool.serve.costs import NodeCosts, fit_prefill, least_squares

__all__ = ["Estimator", "live_costs", "stepwise"]

_WINDOW = 256
_EVERY = 8
_FEWEST = 12
_SIZES = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096)
_POOL_BYTES_S = 2e9
"""How fast blocks come from the pool, until it is known better: a copy and a checksum."""


def live_costs(kv_token_bytes: int, kv_tokens: int) -> NodeCosts:
    """What is assumed before anything was seen: nothing takes time, so the emptiest engine is chosen.

    Args:
        kv_token_bytes: keys and values of a token.
        kv_tokens: tokens that one engine's blocks hold.
    """
    return NodeCosts(
        name="live",
        prefill=(0.0, 0.0, 0.0),
        linear_us=(0.0,) * len(_SIZES),
        hbm_bytes_s=float("inf"),
        layers=1,
        hidden_bytes=0,
        kv_bytes=kv_token_bytes,
        vram_tokens=kv_tokens,
        dram_tokens=kv_tokens,
        nic_bytes_s=_POOL_BYTES_S,
        h2d_bytes_s=_POOL_BYTES_S,
    )


class Estimator:
    """Keeps the last measurements. ``costs`` are fitted to them when somebody asks and enough have come since."""

    def __init__(self, costs: NodeCosts) -> None:
        self._costs = costs
        self._prefills: deque[tuple[int, int, float]] = deque(maxlen=_WINDOW)
        self._steps: deque[tuple[int, int, float]] = deque(maxlen=_WINDOW)
        self._fresh = 0

    @property
    def costs(self) -> NodeCosts:
        """The costs as far as they are known; the same object until there are new ones."""
        if self._fresh >= _EVERY:
            self._fresh = 0
            if len(self._prefills) >= _FEWEST:
                self._fit_prefill()
            if len(self._steps) >= _FEWEST:
                self._fit_step()
        return self._costs

    def prefilled(self, tokens: int, cached: int, seconds: float) -> None:
        """A prompt of ``tokens`` tokens, of which ``cached`` were there, took ``seconds``."""
        if seconds > 0 and cached < tokens:
            self._prefills.append((tokens, cached, seconds))
            self._fresh += 1

    def stepped(self, batch: int, held: int, seconds: float) -> None:
        """A decode step of ``batch`` sequences that hold ``held`` tokens took ``seconds``."""
        if seconds > 0:
            self._steps.append((batch, held, seconds))
            self._fresh += 1

    def _fit_prefill(self) -> None:
        tokens, cached, seconds = zip(*self._prefills, strict=True)
        try:
            found, _ = fit_prefill(tokens, cached, seconds)
        except InvalidConfig:
            return  # all of one size: they tell no slope yet
        if min(found) < 0:  # noise; a straight line through the origin cannot mislead
            rate = sum(seconds) / max(sum(tokens) - sum(cached), 1)
            found = (0.0, rate, 0.0)
        self._costs = replace(self._costs, prefill=found)

    def _fit_step(self) -> None:
        base, each, held = _step_costs(self._steps)
        self._costs = replace(
            self._costs,
            linear_us=stepwise(base, each),
            hbm_bytes_s=self._costs.kv_bytes / held if held > 0 else float("inf"),
        )


def stepwise(base: float, each: float) -> tuple[float, ...]:
    """``NodeCosts.linear_us`` of a step that takes ``base`` seconds and ``each`` per sequence."""
    return tuple((base + each * size) * 1e6 for size in _SIZES)


def _step_costs(steps: Iterable[tuple[int, int, float]]) -> tuple[float, float, float]:
    """Seconds of a step: constant, per sequence, per token held; never negative.

    Args:
        steps: (sequences, tokens they hold, seconds) as measured.
    """
    batch, held, seconds = (np.asarray(column, np.float64) for column in zip(*steps, strict=True))
    base, each, per_token = least_squares(np.stack([np.ones_like(batch), batch, held], axis=1), seconds).tolist()
    return base, each, per_token
