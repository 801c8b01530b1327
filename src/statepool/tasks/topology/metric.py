"""A hyperbolic metric on a surface with one vertex: geodesics give every isotopy class a key, and least crossings.

Edge lengths are generic, so that no geodesic goes through the vertex and no two cross on an edge. The native walker
computes with about 32 digits and knows when they do not suffice; mpmath with as many as needed is its twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import mpmath
import numpy as np

from statepool.tasks.topology.manifold import core

__all__ = ["Metric", "crossings", "walk"]

_DIGITS = 40
_LONGEST = 1 << 14

Motion = tuple[Any, Any, Any, Any]
"""The rows of a matrix of determinant 1."""


def _product(*motions: Motion) -> Motion:
    a, b, c, d = motions[0]
    for e, f, g, h in motions[1:]:
        a, b, c, d = a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
    return a, b, c, d


def _turn(angle: Any) -> Motion:
    """Turn to the left."""
    c, s = mpmath.cos(angle / 2), mpmath.sin(angle / 2)
    return c, s, -s, c


def _ahead(way: Any) -> Motion:
    grown = mpmath.exp(way / 2)
    return grown, mpmath.mpf(0), mpmath.mpf(0), 1 / grown


class Metric:
    """The metric of a surface.

    Args:
        across: Side on the other side of each side; three sides per triangle, anticlockwise.
        edge: Edge of each side.
        salt: Another metric for another salt.
    """

    def __init__(self, across: Sequence[int], edge: Sequence[int], salt: int = 0) -> None:
        self.across, self.edge = list(across), list(edge)
        # fractional parts of multiples of the golden ratio: generic and spread
        self._shape = [1 + ((e + 1 + 7 * salt) * 0.6180339887498949 % 1) * 0.35 for e in range(len(edge) // 2)]
        self._scales: dict[int, Any] = {}
        self.walked = 0
        """Geodesics for which 32 digits did not suffice."""

    def _angles(self, scale: Any, library: Any) -> list[Any]:
        """Angle at each corner (opposite the side of that number) with edges of `scale` times the shape."""
        cosh = [library.cosh(scale * length) for length in self._shape]
        sinh = [library.sinh(scale * length) for length in self._shape]
        angles = []
        for side in range(len(self.edge)):
            a, b, c = (self.edge[side // 3 * 3 + (side + k) % 3] for k in range(3))
            angles.append(library.acos((cosh[b] * cosh[c] - cosh[a]) / (sinh[b] * sinh[c])))
        return angles

    def _scale(self) -> Any:
        """The factor that makes the angles at the vertex add up to 2 pi, to mpmath's working precision."""
        digits = mpmath.mp.dps
        if digits not in self._scales:
            with mpmath.workdps(digits + 5):
                one, two = mpmath.mpf(self._rough), mpmath.mpf(self._rough) * (1 + mpmath.mpf(10) ** -9)
                # the secant method: each step adds up the right digits of the two before
                before, here = self._excess(one), self._excess(two)
                while abs(two - one) > mpmath.mpf(10) ** -digits and here != before:
                    one, two = two, two - here * (two - one) / (here - before)
                    before, here = here, self._excess(two)
                self._scales[digits] = two
        return self._scales[digits]

    def _excess(self, scale: Any) -> Any:
        return mpmath.fsum(self._angles(scale, mpmath.mp)) - 2 * mpmath.pi

    @cached_property
    def _rough(self) -> float:
        low, high = 0.05, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if math.fsum(self._angles(middle, math)) > 2 * math.pi else (low, middle)
        return low

    def motions(self) -> list[tuple[Motion, Motion]]:
        """Per side, at mpmath's working precision: from its middle, looking in, to the next one left, and right."""
        scale = self._scale()
        angles = self._angles(scale, mpmath.mp)
        half = [_ahead(scale * length / 2) for length in self._shape]
        left, right = _turn(mpmath.pi / 2), _turn(-mpmath.pi / 2)
        made = []
        for side in range(len(self.edge)):
            following, prior = (side // 3 * 3 + (side + k) % 3 for k in (1, 2))
            own, e, f = half[self.edge[side]], half[self.edge[following]], half[self.edge[prior]]
            # the corner on the left is opposite the side that follows, the one on the right opposite the side before
            to_left = _product(left, own, _turn(angles[following] - mpmath.pi), f, left)
            to_right = _product(right, own, _turn(mpmath.pi - angles[prior]), e, right)
            made.append((to_left, to_right))
        return made

    @cached_property
    def matrices(self) -> np.ndarray:
        """float64 [sides, 2, 4, 2]: the motions, each entry as a sum of two doubles."""
        made = np.zeros((len(self.edge), 2, 4, 2))
        with mpmath.workdps(_DIGITS):
            for side, pair in enumerate(self.motions()):
                for right, motion in enumerate(pair):
                    for i, value in enumerate(motion):
                        made[side, right, i] = float(value), float(value - float(value))
        return made

    @cached_property
    def reach(self) -> list[float]:
        """tanh of half the length of each side."""
        with mpmath.workdps(_DIGITS):
            return [float(mpmath.tanh(self._scale() * self._shape[e] / 2)) for e in self.edge]

    def geodesic(self, surface: Any, entry: Sequence[int], right: Sequence[int]) -> Any:
        """The closed geodesic in the free homotopy class of a path: native, or with more digits where it must be."""
        found = surface.geodesic(list(entry), list(right))
        if found.sure:
            return found
        self.walked += 1
        return core.Geodesic.of(*walk(self, entry, right))

    def key(self, surface: Any, entry: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
        """How often the geodesic crosses each edge."""
        return tuple(surface.weights(self.geodesic(surface, entry, right)))

    def distance(self, surface: Any, one: tuple[int, ...], two: tuple[int, ...]) -> int:
        """Least crossings of two curves, given by their keys."""
        if one == two:
            return 0
        first, second = (self._known(surface, key) for key in (one, two))
        crossed = surface.distance(first, second)
        if crossed < 0:
            exact = (walk(self, *surface.path(list(key))) for key in (one, two))
            crossed = crossings(*exact)
        return int(crossed)

    def _known(self, surface: Any, key: tuple[int, ...]) -> Any:
        return self._cache(surface, key)

    @cached_property
    def _cache(self) -> Any:
        return lru_cache(4096)(lambda surface, key: self.geodesic(surface, *surface.path(list(key))))


Walk = tuple[list[int], list[int], list[Any], list[Any]]
"""Entry sides, exit sides, places on them (tanh of the distance from the middle), triangle after triangle."""


def walk(metric: Metric, entry: Sequence[int], right: Sequence[int]) -> Walk:
    """The closed geodesic of a path, with as many digits as its length asks for."""
    # the error at the end of a geodesic grows like e to its length, which is less than two per crossing
    with mpmath.workdps(_DIGITS + len(entry)):
        return _walk(metric, list(entry), list(right))


def _walk(metric: Metric, entry: list[int], right: list[int]) -> Walk:
    motions = metric.motions()
    across = metric.across
    a, b, c, d = _product(*(motions[side][turn] for side, turn in zip(entry, right, strict=True)))
    trace = a + d
    size = mpmath.sqrt(trace * trace - 4)
    large = (trace + size) / 2 if trace > 0 else (trace - size) / 2
    small = 1 / large
    # eigenvectors, written so that nothing cancels
    ends = ((small - d, c), (b, large - a)) if abs(a) < abs(d) else ((b, small - a), (large - d, c))
    source, target = ends
    side = entry[0]

    def facing(turn: int, z: Any) -> Any:
        """A point at infinity (projective pair) in the frame on another side, looking out; 2 is the side itself."""
        x, y = z
        if turn == 2:
            return -y, x
        p, q, r, s = motions[side][turn]
        return s * x - q * y, p * y - r * x

    def beside(turn: int) -> int:
        return side if turn == 2 else side // 3 * 3 + (side + (1 if turn else 2)) % 3

    def leaves(turn: int) -> Any:
        """Where the geodesic leaves over that side, or None."""
        (fx, fy), (tx, ty) = facing(turn, source), facing(turn, target)
        if abs(tx) <= abs(ty) or abs(fx) >= abs(fy):
            return None
        place = (fy * ty + fx * tx) / (fx * ty + tx * fy)
        return place if abs(place) <= metric.reach[beside(turn)] else None

    def middle() -> Any:
        """The point of the axis nearest to the frame."""
        (rx, ry), (ax, ay) = source, target
        ratio = (rx * rx + ry * ry) / (ax * ax + ay * ay)
        below = ry * ry + ay * ay * ratio
        return mpmath.mpc((rx * ry + ax * ay * ratio) / below, mpmath.sqrt(ratio) * abs(ax * ry - rx * ay) / below)

    point = middle()
    for _ in range(_LONGEST):
        for turn in (0, 1, 2):
            p, q, r, s = (
                (mpmath.mpf(0), mpmath.mpf(1), mpmath.mpf(-1), mpmath.mpf(0)) if turn == 2 else motions[side][turn]
            )
            moved = (s * point - q) / (p - r * point)
            if abs(moved) > 1:
                source, target, point = facing(turn, source), facing(turn, target), moved
                side = across[beside(turn)]
                break
        else:
            break
    first: tuple[int, Any] | None = None
    walked: Walk = ([], [], [], [])
    here = mpmath.mpf(0)
    for _ in range(_LONGEST):
        turns = [turn for turn in ((0, 1, 2) if first is None else (0, 1)) if leaves(turn) is not None]
        if len(turns) != 1:
            break
        turn = turns[0]
        place, out = leaves(turn), beside(turn)
        if first is not None:
            for column, value in zip(walked, (side, out, here, -place), strict=True):
                column.append(value)
        source, target = facing(turn, source), facing(turn, target)
        side, here = across[out], place
        if first is None:
            first = side, place
        elif side == first[0] and abs(place - first[1]) < mpmath.mpf(10) ** -(_DIGITS // 2):
            return walked
    raise ArithmeticError(f"a geodesic with {len(entry)} crossings did not close")


def crossings(one: Walk, two: Walk) -> int:
    """Pairs of chords whose ends alternate on the boundary of their triangle."""
    count = 0
    for i in range(len(one[0])):
        low, high = sorted(((one[0][i], one[2][i]), (one[1][i], one[3][i])))
        for j in range(len(two[0])):
            if two[0][j] // 3 == one[0][i] // 3:
                count += (low < (two[0][j], two[2][j]) < high) != (low < (two[1][j], two[3][j]) < high)
    return count
