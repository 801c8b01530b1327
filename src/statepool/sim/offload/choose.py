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


def layouts(compute: Device, memory: Device, budget: float) -> Iterator[Layout]:
    """Every layout of at most ``budget`` dollars per hour."""
    for count in range(1, int(budget / compute.price) + 1):
        yield Layout(count)
        for more in range(1, int((budget - count * compute.price) / memory.price) + 1):
            for batches in _BATCHES:
                if count % max(batches - 1, 1) == 0:
                    yield Layout(count, more, batches)


def choose(
    shape: Shape,
    work: Workload,
    compute: Device,
    memory: Device,
    budget: float,
    rate: Efficiency | None = None,
    slo_tbt: float = math.inf,
) -> Choice:
    """The layout of most tokens per second for at most ``budget`` dollars per hour; the cheaper one of two equal ones.

    Raises:
        InvalidConfig: nothing of that price holds the model and a request, or is fast enough.
    """
    found = [
        each
        for layout in layouts(compute, memory, budget)
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
