"""Drawn loads: Poisson arrivals of prompts of one length, a share of which is cached context."""

from __future__ import annotations

import random

from statepool.core.errors import InvalidConfig
from statepool.sim.traces import BLOCK, Call

__all__ = ["poisson"]


def poisson(
    count: int,
    rate: float,
    prompt: int,
    output: int,
    cached: float = 0.5,
    contexts: int = 8,
    seed: int = 0,
    block: int = BLOCK,
) -> list[Call]:
    """``count`` calls at ``rate`` per second, each on one of ``contexts`` long contexts.

    The first ``cached`` share of a prompt is its context, the rest its own (Mooncake 2407.00079, simulated data).

    Raises:
        InvalidConfig: a rate that is not above 0, or a share outside 0 to 1.
    """
    if not rate > 0:
        raise InvalidConfig(f"rate is {rate}; it must be above 0", param="rate")
    if not 0 <= cached <= 1:
        raise InvalidConfig(f"cached is {cached}; it must be from 0 to 1", param="cached")
    draw = random.Random(seed)
    blocks = -(-prompt // block)
    shared = int(prompt * cached) // block
    calls, at, fresh = [], 0.0, contexts * blocks
    for _ in range(count):
        at += draw.expovariate(rate)
        context = draw.randrange(contexts) * blocks
        own = range(fresh, fresh + blocks - shared)
        fresh += blocks - shared
        calls.append(Call(at, prompt, output, (*range(context, context + shared), *own)))
    return calls
