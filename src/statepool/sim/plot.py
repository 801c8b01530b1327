"""A run as a picture: how long first tokens and gaps took, and the load of both pools over time, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from statepool.serve.snapshot import SLO
from statepool.sim.cluster import Load
from statepool.sim.nodes import Job

__all__ = ["HEIGHT", "LEFT", "STYLE", "TOP", "axes", "draw", "path", "pitch"]

WIDTH, HEIGHT, LEFT, TOP = 300, 170, 52, 34
STYLE = (
    "text{font:11px sans-serif;fill:#333}.t{font-weight:bold}.g{stroke:#ddd}.s{stroke:#c33;stroke-dasharray:4 3}"
    ".a{fill:none;stroke:#1667b7;stroke-width:1.5}.b{fill:none;stroke:#d07a1c;stroke-width:1.5}"
)


def draw(jobs: Sequence[Job], loads: Sequence[Load], slo: SLO, title: str) -> str:
    """The picture as the text of an SVG file; red marks what the SLO allows."""
    ttft = np.array([job.first_token - job.ask.at for job in jobs])
    tbt = np.array([job.tbt_s for job in jobs]) * 1000
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{pitch(3)}" height="{TOP + HEIGHT + 40}">',
        f"<style>{STYLE}</style>",
        f'<text class="t" x="{LEFT}" y="16">{escape(title)}</text>',
        *_distribution(0, "time to first token (s)", ttft[np.isfinite(ttft)], slo.ttft_s),
        *_distribution(1, "worst tenth of gaps (ms)", tbt[np.isfinite(tbt)], slo.tbt_s * 1000),
        *_loads(2, loads),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def pitch(panel: int) -> int:
    """Where a panel begins."""
    return panel * (WIDTH + LEFT + 16)


def _distribution(panel: int, title: str, values: np.ndarray, promised: float) -> list[str]:
    top = max(float(np.quantile(values, 0.999)) if len(values) else 0.0, promised * 1.1)
    ordered = np.sort(values)
    shares = np.arange(1, len(ordered) + 1) / max(1, len(ordered))
    some = np.unique(np.linspace(0, max(0, len(ordered) - 1), min(len(ordered), 300)).astype(int)).tolist()
    line = [(float(ordered[i]), float(shares[i])) for i in some if ordered[i] <= top]
    mark = LEFT + pitch(panel) + promised / top * WIDTH
    return [
        *axes(panel, title, top, "share", 1.0),
        path(panel, "a", line, top, 1.0),
        f'<line class="s" x1="{mark:.1f}" x2="{mark:.1f}" y1="{TOP}" y2="{TOP + HEIGHT}"/>',
    ]


def _loads(panel: int, loads: Sequence[Load]) -> list[str]:
    last = max((load.at for load in loads), default=1.0) or 1.0
    groups: dict[int, list[Load]] = {}
    for load in loads:
        groups.setdefault(int(load.at / last * 150), []).append(load)
    times = [float(np.mean([load.at for load in group])) for group in groups.values()]
    prefill = [float(np.mean([load.prefill for load in group])) for group in groups.values()]
    decode = [float(np.mean([load.decode for load in group])) for group in groups.values()]
    top = max(1.0, *prefill, *decode) if loads else 1.0
    x = LEFT + pitch(panel) + 8
    return [
        *axes(panel, "time (s)", last, "load", top),
        path(panel, "a", list(zip(times, prefill, strict=True)), last, top),
        path(panel, "b", list(zip(times, decode, strict=True)), last, top),
        f'<text x="{x}" y="{TOP + 12}" style="fill:#1667b7">prefill</text>',
        f'<text x="{x + 44}" y="{TOP + 12}" style="fill:#d07a1c">decode</text>',
    ]


def axes(panel: int, title: str, right: float, side: str, top: float) -> list[str]:
    """The frame of a panel whose axes go from 0 to ``right`` and ``top``."""
    x, bottom = LEFT + pitch(panel), TOP + HEIGHT
    parts = [
        f'<text x="{x}" y="{bottom + 32}">{escape(title)}</text>',
        f'<text x="{x - 48}" y="{TOP - 6}">{side}</text>',
    ]
    for part in range(5):
        y, at = bottom - part / 4 * HEIGHT, x + part / 4 * WIDTH
        parts.append(f'<line class="g" x1="{x}" x2="{x + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 34}" y="{y + 4:.1f}">{part / 4 * top:.3g}</text>')
        parts.append(f'<text x="{at - 6:.1f}" y="{bottom + 16}">{part / 4 * right:.3g}</text>')
    return parts


def path(panel: int, style: str, points: Sequence[tuple[float, float]], right: float, top: float) -> str:
    """A line through points."""
    x, bottom = LEFT + pitch(panel), TOP + HEIGHT
    steps = " ".join(f"{x + px / right * WIDTH:.1f},{bottom - py / top * HEIGHT:.1f}" for px, py in points)
    return f'<polyline class="{style}" points="{steps}"/>'
