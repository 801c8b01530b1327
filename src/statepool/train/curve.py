"""Draw a training curve as SVG: `python -m statepool.train.curve curve.jsonl curve.svg`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 320, 56, 44, 16
COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2", "#6b5d52")


def svg(lines: Sequence[dict[str, float]]) -> str:
    """Return a picture of loss (logarithmic) over tokens, one colour per sequence length.

    Lines without a positive, finite loss are left out.
    """
    lines = [line for line in lines if 0 < line["loss"] < math.inf]
    low = math.log10(min(line["loss"] for line in lines))
    high = math.log10(max(line["loss"] for line in lines))
    most = max(line["tokens"] for line in lines)

    def x(tokens: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 16) * tokens / most, 1)

    def y(loss: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(loss)) / (high - low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for loss in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5):
        if low <= math.log10(loss) <= high:
            parts.append(f'<path d="M{LEFT} {y(loss)}H{WIDTH - 16}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y(loss) + 4}" text-anchor="end">{loss:g}</text>')
    parts += [
        f'<text x="{x(million * 1e6)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{million} M</text>'
        for million in range(int(most / 1e6) + 1)
    ]
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">tokens; colour is sequence length</text>'
    )
    parts.append(
        f'<text x="12" y="{HEIGHT / 2}" transform="rotate(-90 12 {HEIGHT / 2})" text-anchor="middle">loss</text>'
    )
    lengths = sorted({int(line["length"]) for line in lines})
    for length, group in groupby(lines, lambda line: int(line["length"])):
        points = " ".join(f"{x(line['tokens'])},{y(line['loss'])}" for line in group)
        colour = COLOURS[lengths.index(length) % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    for index, length in enumerate(lengths):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(
            f'<text x="{WIDTH - 16 - 40 * (len(lengths) - index)}" y="{TOP + 12}" fill="{colour}">{length}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(svg([json.loads(line) for line in source.read_text().splitlines()]))
