"""The same layouts event by event: requests of drawn lengths that come and go, slices that wait for their device.

Nothing here uses the closed form's cycle: a batch's slice waits until its replica is free, its attention until the
memory devices are, and both take as long as what is in the batch just then makes them take.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from statepool.sim.events import Events
from statepool.sim.offload.costs import (
    Device,
    Efficiency,
    Layout,
    Shape,
    Workload,
    attention_s,
    kv_room,
    model_s,
    network_s,
)

__all__ = ["Pipeline", "measure", "pipeline"]

_SPREAD = 0.5
"""Standard deviation of the logarithm of drawn lengths."""


@dataclass(slots=True)
class _Batch:
    contexts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(self.contexts)


class Pipeline:
    """``n`` batches over ``n - 1`` replicas and one pool of memory devices, in slices.

    Args:
        batches: how many.
        slices: attentions per step.
        costs: seconds of (model, attention, network, attention beside the model) of one slice of batch ``j``, asked
            when it begins.
        done: called when batch ``j`` has ended a step, at that time; answers whether it goes on.
    """

    def __init__(
        self,
        batches: int,
        slices: int,
        costs: Callable[[int], tuple[float, float, float, float]],
        done: Callable[[int, float], bool],
    ) -> None:
        self.events = Events()
        self._batches, self._slices, self._costs, self._done = batches, slices, costs, done
        self._replica_free = [0.0] * max(batches - 1, 1)
        self._pool_free = 0.0

    def run(self) -> None:
        """Until no batch goes on."""
        for batch in range(self._batches):
            self.events.at(0.0, self._slice, batch, 0)
        self.events.run()

    def _slice(self, batch: int, part: int) -> None:
        """Slice ``part`` of a step is ready: it takes its replica in the order of readiness."""
        model, attend, wire, here = self._costs(batch)
        at = (batch + part) % len(self._replica_free)
        begin = max(self.events.now, self._replica_free[at])
        free = self._replica_free[at] = begin + model + here
        self.events.at(begin + model + wire / 2, self._attend, batch, part, attend, wire, free)

    def _attend(self, batch: int, part: int, seconds: float, wire: float, free: float) -> None:
        begin = max(self.events.now, self._pool_free)
        self._pool_free = begin + seconds
        self.events.at(max(begin + seconds + wire / 2, free), self._back, batch, part)

    def _back(self, batch: int, part: int) -> None:
        if (part + 1) % self._slices == 0 and not self._done(batch, self.events.now):
            return
        self.events.at(self.events.now, self._slice, batch, part + 1)


def pipeline(model: float, attend: float, wire: float, batches: int, slices: int = 20, steps: int = 20) -> float:
    """Mean seconds of a step of ``slices`` slices, each of these durations, once the pipeline is full."""
    ends: list[float] = []

    def done(batch: int, now: float) -> bool:
        if batch == 0:
            ends.append(now)
        return len(ends) < steps

    Pipeline(batches, slices, lambda _: (model, attend, wire, 0.0), done).run()
    half = len(ends) // 2
    return (ends[-1] - ends[half]) / (len(ends) - 1 - half)


def measure(
    shape: Shape,
    work: Workload,
    layout: Layout,
    compute: Device,
    memory: Device,
    rate: Efficiency | None = None,
    seed: int = 0,
    steps: int = 40,
    slices: int = 4,
) -> float:
    """Tokens per second of a layout with requests of drawn lengths, always as many as fit; 0 if none does."""
    rate, draw = rate or Efficiency(), random.Random(seed)
    stay = layout.here / shape.kv_heads
    capacity = kv_room(shape, layout, compute, memory, rate) / shape.kv_token / layout.batches
    batches = [_Batch() for _ in range(layout.batches)]

    def fill(batch: _Batch, fresh: bool) -> None:
        while True:
            prompt, output = (max(1, round(_drawn(draw, mean))) for mean in (work.prompt, work.output))
            # At the start requests are anywhere in their answers.
            age = draw.randrange(output) if fresh else 0
            expected = prompt + output / 2
            if batch.tokens + expected > capacity:
                return
            batch.contexts.append(prompt + age)
            batch.ends.append(prompt + output)

    for batch in batches:
        fill(batch, fresh=True)
    if not all(batch.contexts for batch in batches):
        return 0.0

    def costs(j: int) -> tuple[float, float, float, float]:
        batch = batches[j]
        size, tokens = len(batch.contexts), batch.tokens
        slice_s = model_s(shape, compute, layout.compute / layout.replicas, size, rate)
        if not layout.memory:
            return (slice_s + attention_s(shape, compute, layout.compute, tokens, rate)) / slices, 0.0, 0.0, 0.0
        here = attention_s(shape, compute, layout.compute / layout.replicas, stay * tokens, rate)
        attend = attention_s(shape, memory, layout.memory, (1 - stay) * tokens, rate)
        wire = network_s(shape, compute, memory, layout, size, rate)
        return slice_s / slices, attend / slices, wire / slices, here / slices

    made, first, last, count = 0, 0.0, 0.0, 0

    def done(j: int, now: float) -> bool:
        nonlocal made, first, last, count
        batch = batches[j]
        count += 1
        if count <= steps // 4 * layout.batches:
            first, made = now, 0
        else:
            made, last = made + len(batch.contexts), now
        grown = [(c + 1, e) for c, e in zip(batch.contexts, batch.ends, strict=True) if c + 1 < e]
        batch.contexts, batch.ends = [c for c, _ in grown], [e for _, e in grown]
        fill(batch, fresh=False)
        return count < steps * layout.batches and bool(batch.contexts)

    Pipeline(layout.batches, slices, costs, done).run()
    return made / (last - first) if last > first else 0.0


def _drawn(draw: random.Random, mean: float) -> float:
    """Log-normal with this mean."""
    return draw.lognormvariate(0.0, _SPREAD) * mean / math.exp(_SPREAD**2 / 2)
