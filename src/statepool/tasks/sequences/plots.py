"""Plots as SVG, written without a plotting library: what a radar engineer looks at first."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code
from statepool.tasks.sequences.correlation import ambiguity, autocorrelation
from statepool.tasks.sequences.filters import best_filter

__all__ = ["PLOTS", "Curve", "draw", "pareto"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 760, 420, 62, 46, 34, 20
_FLOOR = -80.0
_FONT = 'font-family="sans-serif" font-size="12"'
_INK = ("#1b6ca8", "#c2410c", "#15803d", "#7c3aed")


@dataclass(frozen=True)
class Curve:
    """A named line, or points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    points: bool = False


def _db(values: np.ndarray) -> np.ndarray:
    level = np.abs(values) / np.abs(values).max()
    decibels: np.ndarray = np.maximum(_FLOOR, 20 * np.log10(np.maximum(level, 1e-12)))
    return decibels


def correlation(code: Code) -> str:
    """|rho(k)| over the peak, dB, at delays 1 - n to n - 1; zeros are drawn at the floor."""
    half = np.abs(autocorrelation(code))
    n = len(code)
    both = _db(np.concatenate([half[:0:-1], half]))
    return chart("Autocorrelation", "delay (symbols)", "dB", [Curve("|rho|", range(1 - n, n), both.tolist())])


def outputs(code: Code, length: int | None = None, loss_min: float | None = None) -> str:
    """What the matched and the best mismatched filter answer to the code, dB over each one's peak."""
    found = best_filter(code, length, loss_min)
    curves = []
    for name, taps in (("matched", code.signs), (f"mismatched, {found.loss:.2f} dB loss", np.array(found.taps, float))):
        answer = np.correlate(np.asarray(taps, float), code.signs.astype(float), "full")
        peak = int(np.abs(answer).argmax())
        curves.append(Curve(name, range(-peak, len(answer) - peak), _db(answer).tolist()))
    title = f"Filter outputs: SIR {10 * math.log10(found.sir):.2f} dB mismatched"
    return chart(title, "delay (symbols)", "dB", curves)


def surface(code: Code, doppler: float = 2.0) -> str:
    """The ambiguity function over delay and Doppler (cycles per pulse), dB from black (-50) to white (0)."""
    shifts = np.linspace(-doppler, doppler, 121)
    levels = np.clip(_db(ambiguity(code, shifts)), -50, 0)
    grey = np.rint((levels.T[::-1] + 50) / 50 * 255).astype(np.uint8)
    n = len(code)
    frame = _Frame((1 - n, n - 1), (-doppler, doppler))
    picture = base64.b64encode(_png(grey)).decode()
    image = (
        f'<image x="{frame.left}" y="{frame.top}" width="{frame.width}" height="{frame.height}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{picture}"/>'
    )
    return frame.document("Ambiguity function, dB", "delay (symbols)", "Doppler (cycles per pulse)", [image], [])


def pareto(points: Sequence[tuple[float, float]]) -> str:
    """SIR (dB) over loss (dB): all points and the front, which no other point beats in both."""
    if not points:
        raise InvalidRequest("records: a Pareto front needs records with mismatched filters", param="records")
    front: list[tuple[float, float]] = []
    for loss, ratio in sorted(points, reverse=True):
        if not front or ratio > front[-1][1]:
            front.append((loss, ratio))
    curves = [
        Curve("codes", [p[0] for p in points], [p[1] for p in points], points=True),
        Curve("front", [p[0] for p in front], [p[1] for p in front]),
    ]
    return chart("Signal to interference over loss", "loss in processing gain (dB)", "SIR (dB)", curves)


PLOTS = ("correlation", "filters", "ambiguity", "pareto")


def draw(
    kind: str, code: Code, *, length: int | None = None, loss_min: float | None = None, doppler: float = 2.0
) -> str:
    """One of :data:`PLOTS` but ``pareto`` for one code.

    Raises:
        InvalidRequest: No such plot.
    """
    if kind == "correlation":
        return correlation(code)
    if kind == "filters":
        return outputs(code, length, loss_min)
    if kind == "ambiguity":
        return surface(code, doppler)
    raise InvalidRequest(f"plot: '{kind}' is none of {', '.join(PLOTS)}", param="plot")


def chart(title: str, across: str, up: str, curves: Sequence[Curve]) -> str:
    """Curves in one frame."""
    xs = [x for curve in curves for x in curve.x]
    ys = [y for curve in curves for y in curve.y]
    frame = _Frame(_wide(min(xs), max(xs)), _wide(min(ys), max(ys)))
    shapes, names = [], []
    for curve, ink in zip(curves, _INK * (1 + len(curves) // len(_INK)), strict=False):
        places = [(frame.x(x), frame.y(y)) for x, y in zip(curve.x, curve.y, strict=True)]
        if curve.points:
            shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{ink}" fill-opacity="0.55"/>' for x, y in places]
        else:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            shapes.append(f'<polyline points="{line}" fill="none" stroke="{ink}" stroke-width="1.4"/>')
        names.append((curve.name, ink))
    return frame.document(title, across, up, shapes, names)


def _wide(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 1, high + 1)


@dataclass(frozen=True)
class _Frame:
    across: tuple[float, float]
    up: tuple[float, float]
    left: int = _LEFT
    top: int = _TOP
    width: int = _WIDTH - _LEFT - _RIGHT
    height: int = _HEIGHT - _TOP - _BOTTOM

    def x(self, value: float) -> float:
        return self.left + (value - self.across[0]) / (self.across[1] - self.across[0]) * self.width

    def y(self, value: float) -> float:
        return self.top + (self.up[1] - value) / (self.up[1] - self.up[0]) * self.height

    def document(self, title: str, across: str, up: str, shapes: list[str], names: list[tuple[str, str]]) -> str:
        bottom = self.top + self.height
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT}>',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{self.left}" y="22" font-size="15">{escape(title)}</text>',
        ]
        for value in _ticks(*self.up):
            y = self.y(value)
            parts.append(
                f'<line x1="{self.left}" x2="{self.left + self.width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            )
            parts.append(f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in _ticks(*self.across):
            x = self.x(value)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#444"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
        parts += shapes
        parts.append(
            f'<rect x="{self.left}" y="{self.top}" width="{self.width}" height="{self.height}" '
            'fill="none" stroke="#444"/>'
        )
        middle = self.top + self.height // 2
        parts.append(
            f'<text x="{self.left + self.width // 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>'
        )
        parts.append(f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{escape(up)}</text>')
        for row, (name, ink) in enumerate(names):
            y = self.top + 18 + 16 * row
            parts.append(
                f'<text x="{self.left + self.width - 10}" y="{y}" text-anchor="end" fill="{ink}">{escape(name)}</text>'
            )
        return "\n".join([*parts, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 7)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _png(grey: np.ndarray) -> bytes:
    """An 8-bit grey picture [rows, columns]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns = grey.shape
    lines = b"".join(b"\0" + row.tobytes() for row in grey)
    head = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
