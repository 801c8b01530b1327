"""The pictures of docs/attention.md: right answers over bytes read, and milliseconds over length of context.

``python -m bench.attention.picture answers docs/img/wave-answers.svg`` counts: minutes, on any machine.
``python -m bench.attention.picture speeds FILE`` takes times, on an otherwise idle one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from statepool.engine.attention.measure import Layers
from statepool.engine.attention.wave import WaveConfig
from statepool.sim.plot import HEIGHT, LEFT, STYLE, TOP, axes, pitch
from statepool.train.probe.judge import engine_of, questions, score
from statepool.train.probe.rivals import TABLES

_SHARES = (0.018, 0.05, 0.09, 0.14)
_KINDS = {
    "16 tokens per cluster": ("wave", 16),
    "4 tokens per cluster": ("wave:tokens_per_cluster=4", 4),
    "the paper's settings": ("wave:paper,update_segment=256", 16),
    "Quest": ("quest", 16),
    "MoBA's gate": ("moba-gate", 16),
    "random keys": ("random", 16),
}
_LENGTHS = (8192, 16384, 32768, 65536, 131072)
_COLOURS = ("#1667b7", "#3ca951", "#d07a1c", "#a463f2", "#c33", "#888")
_Lines = Mapping[str, Sequence[tuple[float, float]]]


def answers(texts: int) -> _Lines:
    """Of the probe model: (bytes read in per cent of exact attention, right answers in per cent) by kind."""
    asked = questions("probe", texts, 2048)
    return {
        name: [
            (100 * (share + TABLES / size), 100 * score(name, engine_of("probe", kind, share, size), asked).share)
            for share in _SHARES
            if share + TABLES / size < 0.2
        ]
        for name, (kind, size) in _KINDS.items()
    }


def speeds() -> _Lines:
    """(thousands of tokens, milliseconds of a layer) by kind: 16 heads over 8, d = 128."""
    found: dict[str, list[tuple[float, float]]] = {}
    for length in _LENGTHS:
        # A gigabyte in turn, so that no cache holds what is read.
        made = Layers(length, 128, 16, 8, max(2, 2 * _LENGTHS[-1] // length), WaveConfig())
        for cost in made.costs():
            found.setdefault(cost.name, []).append((length / 1024, cost.milliseconds))
    return found


def draw(panels: Sequence[tuple[str, str, float, float, _Lines]]) -> str:
    """(title of x, title of y, largest x, largest y, lines) side by side, as the text of an SVG file."""
    parts: list[str] = []
    for panel, (title, side, right, top, lines) in enumerate(panels):
        parts += axes(panel, title, right, side, top)
        for place, (name, points) in enumerate(lines.items()):
            at = [
                (LEFT + pitch(panel) + x / right * (pitch(1) - LEFT - 16), TOP + HEIGHT * (1 - y / top))
                for x, y in points
            ]
            colour = _COLOURS[place]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            parts.append(f'<polyline points="{line}" style="fill:none;stroke:{colour};stroke-width:1.5"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" style="fill:{colour}"/>' for x, y in at]
            where = LEFT + pitch(panel) + 150 * (place % 2), TOP + HEIGHT + 52 + 15 * (place // 2)
            parts.append(f'<text x="{where[0]}" y="{where[1]}" style="fill:{colour}">{name}</text>')
    size = f'width="{pitch(len(panels))}" height="{TOP + HEIGHT + 90}"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{STYLE}</style>", *parts, "</svg>\n"]
    )


def main(arguments: list[str]) -> None:
    """Measure one of the two and write the file."""
    kind, file = arguments
    if kind == "answers":
        panel = ("bytes read, % of exact attention", "answers right, %", 20.0, 100.0, answers(24))
    else:
        lines = speeds()
        most = max(milliseconds for _, milliseconds in lines["exact"])
        panel = ("context, thousands of tokens", "ms a layer", 128.0, most, lines)
    Path(file).write_text(draw([panel]))


if __name__ == "__main__":
    main(sys.argv[1:])
