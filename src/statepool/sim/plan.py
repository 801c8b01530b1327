"""How fast a load may come, found by bisection, and which split of nodes bears most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from statepool.core.errors import InvalidConfig
from statepool.serve.conductor import Conductor
from statepool.serve.costs import NodeCosts
from statepool.serve.snapshot import SLO
from statepool.sim.cluster import Cluster, Shape
from statepool.sim.report import Report, report
from statepool.sim.traces import Call, sped_up

__all__ = ["Plan", "best_split", "fastest"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A split of nodes and the speed it bears."""

    prefill: int
    decode: int
    speed: float


def fastest(serves: Callable[[float], bool], low: float, high: float, within: float = 0.02) -> float:
    """The largest speed between ``low`` and ``high`` that ``serves``, to a relative error of ``within``; 0 if none."""
    if not serves(low):
        return 0.0
    if serves(high):
        return high
    while high / low > 1 + within:
        middle = (low * high) ** 0.5
        if serves(middle):
            low = middle
        else:
            high = middle
    return low


def run(calls: Sequence[Call], shape: Shape, costs: NodeCosts, slo: SLO, steer: Conductor) -> Report:
    """The figures of ``calls`` on such a cluster."""
    cluster = Cluster(costs, shape, steer, slo)
    return report(cluster.run(calls), cluster.loads, slo, shape.block)


def best_split(
    calls: Sequence[Call],
    nodes: int,
    costs: NodeCosts,
    slo: SLO,
    steer: Conductor,
    share: float = 0.9,
    cache_tokens: int = 3_000_000,
    block: int = 512,
) -> list[Plan]:
    """Every split of ``nodes``, the one first that serves ``share`` of requests and of tokens at the highest speed.

    Raises:
        InvalidConfig: fewer than two nodes, or a share not between 0 and 1.
    """
    if nodes < 2:
        raise InvalidConfig(f"{nodes} nodes cannot be split; one must prefill and one decode", param="nodes")
    if not 0 < share <= 1:
        raise InvalidConfig(f"share is {share}; it must be above 0 and at most 1", param="share")
    found = []
    for prefill in range(1, nodes):
        shape = Shape(prefill, nodes - prefill, cache_tokens, block)

        def serves(speed: float, shape: Shape = shape) -> bool:
            figures = run(sped_up(calls, speed), shape, costs, slo, steer)
            return min(figures.effective, figures.effective_tokens) >= share

        found.append(Plan(prefill, nodes - prefill, fastest(serves, 0.05, 50.0)))
    return sorted(found, key=lambda each: -each.speed)
