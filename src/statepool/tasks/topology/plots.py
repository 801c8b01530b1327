"""Pictures as SVG: the distances between the slopes of a manifold, and a slope drawn on the boundary cut open."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from statepool.core.errors import InvalidRequest
from statepool.tasks.topology.boundary import Boundary, Slope

__all__ = ["PLOTS", "distances", "drawn"]

PLOTS = ("distances", "slope")

_COLOURS = {
    "simple": "#4477aa",
    "irreducible": "#ccbb44",
    "boundary-reducible": "#ee6677",
    "splits": "#aa3377",
    "undecided": "#bbbbbb",
}


def _figure(width: float, height: float) -> Any:
    """A figure without a display; SVG text stays text, and the same picture gives the same bytes."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "statepool", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def distances(boundary: Boundary, slopes: Sequence[Slope], verdicts: Sequence[str]) -> str:
    """The graph of distances: a point per slope, coloured by its verdict, a line per pair, labelled where short.

    Raises:
        InvalidRequest: There are fewer than two slopes.
    """
    if len(slopes) < 2:
        raise InvalidRequest("limit: a graph of distances needs two slopes", param="limit")
    figure = _figure(7.5, 6.0)
    axes = figure.add_subplot(aspect="equal")
    angles = [2 * math.pi * i / len(slopes) for i in range(len(slopes))]
    places = [(math.cos(a), math.sin(a)) for a in angles]
    matrix = [[boundary.distance(one, two) for two in slopes] for one in slopes]
    least = min(d for i, row in enumerate(matrix) for d in row[:i])
    for i, row in enumerate(matrix):
        for j, distance in enumerate(row[:i]):
            (x0, y0), (x1, y1) = places[i], places[j]
            near = distance == least
            axes.plot((x0, x1), (y0, y1), color="#444444" if near else "#dddddd", lw=1.0 if near else 0.5, zorder=1)
            if len(slopes) <= 12:
                axes.text(0.6 * x0 + 0.4 * x1, 0.6 * y0 + 0.4 * y1, str(distance), fontsize=7, zorder=3)
    for kind in dict.fromkeys(verdicts):
        chosen = [place for place, verdict in zip(places, verdicts, strict=True) if verdict == kind]
        axes.scatter(*zip(*chosen, strict=True), s=60, color=_COLOURS[kind], label=kind, zorder=2)
    for i, (x, y) in enumerate(places):
        axes.text(1.1 * x, 1.1 * y, str(i), ha="center", va="center", fontsize=8)
    axes.set_title(f"Distances of slopes; dark lines: {least}, the least")
    axes.legend(loc="lower right", fontsize=8)
    axes.set_axis_off()
    return _svg(figure)


def drawn(boundary: Boundary, slope: Slope) -> str:
    """The boundary cut open along a tree of its triangles into a polygon, and the slope on it, with edge numbers."""
    polygon, corners = _unfold(boundary)
    figure = _figure(7.0, 7.0)
    axes = figure.add_subplot(aspect="equal")
    inner = {side for side in range(len(boundary.across)) if boundary.across[side] in polygon[side // 3]}
    for side in range(len(boundary.across)):
        (x0, y0), (x1, y1) = _ends(corners, side)
        axes.plot((x0, x1), (y0, y1), color="#bbbbbb" if side in inner else "#222222", lw=0.8)
        if side not in inner:
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            size = math.hypot(x, y) or 1.0
            axes.text(x * (1 + 0.07 / size), y * (1 + 0.07 / size), str(boundary.edge[side]), ha="center", fontsize=8)
    for t in range(len(boundary.edge) // 3):
        w = [slope.weights[boundary.edge[3 * t + s]] for s in range(3)]
        for c in range(3):
            one, two = 3 * t + (c + 1) % 3, 3 * t + (c + 2) % 3
            for depth in range((w[(c + 1) % 3] + w[(c + 2) % 3] - w[c]) // 2):
                # corner c ends side c + 1 and begins side c + 2
                a = _on(corners, one, w[(c + 1) % 3] - 1 - depth, w[(c + 1) % 3])
                b = _on(corners, two, depth, w[(c + 2) % 3])
                axes.plot((a[0], b[0]), (a[1], b[1]), color="#ee6677", lw=1.3)
    kind = "separating" if slope.separating else "not separating"
    axes.set_title(f"A slope, {kind}; sides with the same number are glued")
    axes.set_axis_off()
    return _svg(figure)


Point = tuple[float, float]


def _ends(corners: list[list[Point]], side: int) -> tuple[Point, Point]:
    t, s = divmod(side, 3)
    return corners[t][(s + 1) % 3], corners[t][(s + 2) % 3]


def _on(corners: list[list[Point]], side: int, place: int, weight: int) -> Point:
    (x0, y0), (x1, y1) = _ends(corners, side)
    at = (place + 1) / (weight + 1)
    return x0 + at * (x1 - x0), y0 + at * (y1 - y0)


def _unfold(boundary: Boundary) -> tuple[list[set[int]], list[list[Point]]]:
    """Triangles as a triangulated regular polygon: per triangle the sides glued inside it, and its three corners."""
    count = len(boundary.edge) // 3
    across = boundary.across
    inner: list[set[int]] = [set() for _ in range(count)]
    # the boundary of the polygon so far, as sides of triangles, anticlockwise
    rim, reached = [0, 1, 2], {0}
    while len(reached) < count:
        for i, side in enumerate(rim):
            other = across[side]
            if other // 3 not in reached:
                reached.add(other // 3)
                inner[side // 3].add(other)
                inner[other // 3].add(side)
                rim[i : i + 1] = [other // 3 * 3 + (other + k) % 3 for k in (1, 2)]
                break
    place = {side: i for i, side in enumerate(rim)}
    points = [(math.cos(2 * math.pi * i / len(rim)), math.sin(2 * math.pi * i / len(rim))) for i in range(len(rim))]
    corners: list[list[Point | None]] = [[None] * 3 for _ in range(count)]
    for side, i in place.items():
        t, s = divmod(side, 3)
        corners[t][(s + 1) % 3], corners[t][(s + 2) % 3] = points[i], points[(i + 1) % len(rim)]
    # corners met only by inner sides take their place from the neighbour over such a side
    while any(corner is None for row in corners for corner in row):
        for t in range(count):
            for other in inner[t]:
                s, (u, r) = across[other] % 3, divmod(other, 3)
                for mine, theirs in (((s + 1) % 3, (r + 2) % 3), ((s + 2) % 3, (r + 1) % 3)):
                    corners[t][mine] = corners[t][mine] or corners[u][theirs]
    return inner, [[corner for corner in row if corner is not None] for row in corners]
