"""Tokens per dollar over the budget, together and with attention workers, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from statepool.core.errors import InvalidConfig
from statepool.sim.offload.choose import Choice, choose
from statepool.sim.offload.costs import Device, Shape, Workload
from statepool.sim.plot import HEIGHT, LEFT, STYLE, TOP, axes, path, pitch

__all__ = ["draw"]

_POINTS = 24


def draw(
    shape: Shape, works: Sequence[Workload], compute: Device, memory: Device, budget: float, slo_tbt: float
) -> str:
    """A panel per workload: blue without attention workers, orange with, up to twice the budget, marked in red."""
    devices = f"{shape.name} on {compute.name} with {memory.name}"
    title = f"{devices}: tokens per dollar over dollars per hour; blue together, orange apart"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{pitch(len(works))}" height="{TOP + HEIGHT + 40}">',
        f"<style>{STYLE}</style>",
        f'<text class="t" x="{LEFT}" y="16">{escape(title)}</text>',
    ]
    for panel, work in enumerate(works):
        together: list[tuple[float, float]] = []
        apart: list[tuple[float, float]] = []
        for i in range(1, _POINTS + 1):
            dollars = 2 * budget * i / _POINTS
            choice = _affordable(shape, work, compute, memory, dollars, slo_tbt)
            if choice is None:
                continue
            for line, each in ((together, choice.together), (apart, choice.apart)):
                if each is not None:
                    line.append((dollars, each.tokens_dollar))
        top = max((y for _, y in together + apart), default=1.0)
        mark = LEFT + pitch(panel) + (pitch(1) - LEFT - 16) / 2
        parts += axes(panel, work.name, 2 * budget, "tokens/$", top)
        parts += [path(panel, "a", together, 2 * budget, top), path(panel, "b", apart, 2 * budget, top)]
        parts.append(f'<line class="s" x1="{mark}" x2="{mark}" y1="{TOP}" y2="{TOP + HEIGHT}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _affordable(
    shape: Shape, work: Workload, compute: Device, memory: Device, dollars: float, slo_tbt: float
) -> Choice | None:
    try:
        return choose(shape, work, compute, memory, dollars, slo_tbt=slo_tbt)
    except InvalidConfig:  # nothing fits so little money
        return None
