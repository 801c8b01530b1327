"""Which devices to take for a model and its load, and whether to part the attentions from the rest at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from statepool.core.errors import InvalidConfig
from statepool.sim.offload.costs import Device, Efficiency, Estimate, Layout, Shape, Workload, estimate

__all__ = ["Choice", "choose", "layouts"]

_BATCHES = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Choice:
    """All layouts that can be had, the best first, and the best of each kind.

    ``best`` is the one to take; it is ``together`` where parting does not pay.
    """

    all: list[Estimate]
    best: Estimate
    together: Estimate | None
    apart: Estimate | None

    @property
    def declined(self) -> bool:
        """Whether the attentions stay where the model is."""
        return not self.best.layout.memory


def layouts(compute: Device, memory: Device, budget: float, kv_heads: int = 0) -> Iterator[Layout]:
    """Every layout of at most ``budget`` dollars per hour; with ``kv_heads``, those too where some of them stay.

    A memory device that costs nothing comes with a compute device, one with each.
    """
    for count in range(1, int(budget / compute.price) + 1):
        yield Layout(count)
        most = int((budget - count * compute.price) / memory.price) if memory.price else count
        for more in range(1, most + 1):
            for batches in _BATCHES:
                if count % max(batches - 1, 1) == 0:
                    yield Layout(count, more, batches)
                    for here in range(1, kv_heads):
                        if (kv_heads - here) % more == 0:
                            yield Layout(count, more, batches, here)


def choose(
    shape: Shape,
    work: Workload,
    compute: Device,
    memory: Device,
    budget: float,
    rate: Efficiency | None = None,
    slo_tbt: float = math.inf,
    partial: bool = False,
) -> Choice:
    """The layout of most tokens per second for at most ``budget`` dollars per hour; the cheaper one of two equal ones.

    With ``partial``, some KV heads may stay with the model.

    Raises:
        InvalidConfig: nothing of that price holds the model and a request, or is fast enough.
    """
    found = [
        each
        for layout in layouts(compute, memory, budget, shape.kv_heads if partial else 0)
        if (each := estimate(shape, work, layout, compute, memory, rate, slo_tbt)) is not None
    ]
    if not found:
        raise InvalidConfig(
            f"no devices for ${budget:g} per hour hold {shape.name} and a request of {work.name}"
            + (f" within {slo_tbt:g} s per token" if slo_tbt < math.inf else ""),
            param="budget",
        )
    found.sort(key=lambda each: (-round(each.tokens_s, 6), each.dollars))
    together = next((each for each in found if not each.layout.memory), None)
    apart = next((each for each in found if each.layout.memory), None)
    return Choice(found, found[0], together, apart)
