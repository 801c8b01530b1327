"""Angle structures: dihedral angles that prove a triangulated manifold simple, or at least irreducible.

Lackenby; Futer and Guéritaud, section 2. Give every edge of every tetrahedron an angle, so that angles around an edge
add up to 2 pi and the three at a corner to pi at a torus, to less at a boundary of higher genus. A normal disc then
has area >= 0, and the areas of a surface add up to -2 pi times its Euler characteristic. All angles positive: no
essential sphere, disc, torus or annulus, so the manifold is simple. Angles from 0 to pi and corners up to pi: no
essential sphere or disc.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from statepool.tasks.topology.manifold import Skeleton

__all__ = ["Angles", "find"]

_LEAST = 1e-5
"""Slack, in units of pi, above which a floating-point optimum is taken for positive."""
_CORNERS = ((0, 1, 2), (0, 3, 4), (1, 3, 5), (2, 4, 5))
_EDGE = ((-1, 0, 1, 2), (0, -1, 3, 4), (1, 3, -1, 5), (2, 4, 5, -1))
_local = threading.local()


@dataclass(frozen=True)
class Angles:
    """A certificate: angles in units of pi over a common denominator."""

    denominator: int
    numerators: tuple[int, ...]
    """[6n]: at the edges 01, 02, 03, 12, 13, 23 of each tetrahedron."""
    strict: bool
    """All conditions are strict: the manifold is simple; else irreducible and boundary-irreducible."""


def find(gluing: Sequence[int], *, weak: bool = False) -> Angles | None:
    """An angle structure of this triangulation, exact, or None; with ``weak`` also one that is not strict."""
    skeleton = Skeleton.of(gluing)
    if not skeleton.valid or any(e > 0 for e in skeleton.euler):
        return None
    solved = _solve(skeleton)
    if solved is None:
        return None
    slack, angles = solved
    if slack > _LEAST:
        return _inside(skeleton, angles)
    return _face(skeleton, angles) if weak and slack > -1e-7 else None


def _rows(skeleton: Skeleton) -> tuple[list[list[int]], list[int]]:
    """Equations with 0 and 1 as coefficients: the angles in each, and its right side."""
    rows: list[list[int]] = [[] for _ in skeleton.degree]
    for angle, edge in enumerate(skeleton.edge):
        rows[edge].append(angle)
    sides = [2] * len(rows)
    for corner, vertex in enumerate(skeleton.vertex):
        if skeleton.euler[vertex] == 0:
            rows.append([corner // 4 * 6 + e for e in _CORNERS[corner % 4]])
            sides.append(1)
    return rows, sides


def _solver() -> Any:
    """One solver per thread. HiGHS prints a banner when it is made, before it takes options: that goes nowhere."""
    import highspy

    solver = getattr(_local, "solver", None)
    if solver is None:
        sys.stdout.flush()
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 1)
            solver = _local.solver = highspy.Highs()  # type: ignore[no-untyped-call]
            solver.setOptionValue("output_flag", False)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("presolve", "off")
    return solver


def _solve(skeleton: Skeleton) -> tuple[float, np.ndarray] | None:
    """The largest slack by linear programming, and the angles, in floating point."""
    import highspy

    rows, sides = _rows(skeleton)
    open_corners = [
        [corner // 4 * 6 + e for e in _CORNERS[corner % 4]]
        for corner, vertex in enumerate(skeleton.vertex)
        if skeleton.euler[vertex] < 0
    ]
    count = len(skeleton.edge)
    # unknowns: each angle less the slack, and the slack
    index: list[int] = []
    value: list[float] = []
    start: list[int] = []
    for row in rows:
        start.append(len(index))
        index += [*row, count]
        value += [1.0] * len(row) + [float(len(row))]
    for row in open_corners:
        start.append(len(index))
        index += [*row, count]
        value += [1.0, 1.0, 1.0, 4.0]
    lower = np.array([float(side) for side in sides] + [-math.inf] * len(open_corners))
    upper = np.array([float(side) for side in sides] + [1.0] * len(open_corners))
    solver = _solver()
    cost = np.zeros(count + 1)
    cost[count] = -1.0
    low, high = np.zeros(count + 1), np.full(count + 1, 2.0)
    low[count], high[count] = -1.0, 1.0
    solver.passModel(
        count + 1, len(lower), len(index), 2, 1, 0.0, cost, low, high, lower, upper,
        np.array(start, np.int32), np.array(index, np.int32), np.array(value), np.zeros(count + 1, np.int32),
    )  # fmt: skip
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    solution = np.array(solver.getSolution().col_value)
    return float(solution[count]), solution[:count] + solution[count]


def _inside(skeleton: Skeleton, angles: np.ndarray) -> Angles | None:
    """Fractions near a solution with room on all sides.

    Corners at tori are solved for angles of their own, tetrahedron by tetrahedron. Every angle stands in one equation
    of an edge; an angle that no torus corner reads takes up what rounding left of its edge, and elimination does the
    rest.
    """
    count = len(angles)
    torus = [skeleton.euler[vertex] == 0 for vertex in skeleton.vertex]
    follows: dict[int, tuple[int, list[int]]] = {}
    """Angle -> constant and the angles that it takes away, or whose copy it is (constant 0)."""
    for t in range(count // 6):
        at = [v for v in range(4) if torus[4 * t + v]]
        first = 6 * t
        if len(at) == 4:
            follows |= {first + 5: (0, [first]), first + 4: (0, [first + 1]), first + 2: (1, [first, first + 1])}
            follows[first + 3] = (1, [first, first + 1])
            continue
        for v in at:
            own = _EDGE[v][next(w for w in range(4) if w not in at and w != v)]
            follows[first + own] = (1, [first + e for e in _CORNERS[v] if e != own])
    used = {angle for _, others in follows.values() for angle in others}
    private: dict[int, int] = {}
    for angle, edge in enumerate(skeleton.edge):
        if angle not in follows and angle not in used:
            private.setdefault(edge, angle)
    free = sorted(used)
    column = {angle: i for i, angle in enumerate(free)}
    rows = [edge for edge in range(len(skeleton.degree)) if edge not in private]
    for denominator in (10**4, 10**7, 10**10):
        exact = np.array([round(x * denominator) for x in angles], dtype=object)
        scale = 1
        if rows:
            for angle, (constant, others) in follows.items():
                exact[angle] = _following(exact, constant * denominator, others)
            moved = _moved(skeleton, follows, rows, column, exact, denominator)
            if moved is None:
                return None
            scale, shifts = moved
            exact = exact * scale
            for angle, shift in zip(free, shifts, strict=True):
                exact[angle] += shift
        for angle, (constant, others) in follows.items():
            exact[angle] = _following(exact, constant * denominator * scale, others)
        around = [0] * len(skeleton.degree)
        for value, edge in zip(exact, skeleton.edge, strict=True):
            around[edge] += value
        for edge, angle in private.items():
            exact[angle] += 2 * denominator * scale - around[edge]
        shared = math.gcd(scale * denominator, *exact.tolist())
        found = Angles(scale * denominator // shared, tuple(int(x) // shared for x in exact), True)
        if _holds(skeleton, found):
            return found
    return None


def _following(exact: np.ndarray, constant: int, others: list[int]) -> int:
    total = sum(int(exact[angle]) for angle in others)
    return constant - total if constant else total


def _moved(
    skeleton: Skeleton,
    follows: dict[int, tuple[int, list[int]]],
    rows: list[int],
    column: dict[int, int],
    exact: np.ndarray,
    denominator: int,
) -> tuple[int, list[int]] | None:
    """Shifts of the free angles, over a common denominator, that mend the equations of these edges."""
    from flint import fmpz_mat

    place = {edge: i for i, edge in enumerate(rows)}
    table = [[0] * len(column) + [2 * denominator] for _ in rows]
    for angle, edge in enumerate(skeleton.edge):
        i = place.get(edge)
        if i is None:
            continue
        table[i][-1] -= int(exact[angle])
        if angle in follows:
            constant, others = follows[angle]
            for other in others:
                table[i][column[other]] += -1 if constant else 1
        elif angle in column:
            table[i][column[angle]] += 1
    echelon, scale, rank = fmpz_mat(table).rref()
    shifts = [0] * len(column)
    for i in range(rank):
        pivot = next(j for j in range(len(column) + 1) if echelon[i, j])
        if pivot == len(column):
            return None
        shifts[pivot] = int(echelon[i, len(column)]) * (1 if scale > 0 else -1)
    return abs(int(scale)), shifts


def _face(skeleton: Skeleton, angles: np.ndarray) -> Angles | None:
    """Fractions near a solution without room: angles that are 0 and corners that are full are more equations."""
    from flint import fmpz_mat

    rows, sides = _rows(skeleton)
    for angle in np.flatnonzero(angles < _LEAST):
        rows.append([int(angle)])
        sides.append(0)
    for corner, vertex in enumerate(skeleton.vertex):
        three = [corner // 4 * 6 + e for e in _CORNERS[corner % 4]]
        if skeleton.euler[vertex] < 0 and float(angles[three].sum()) > 1 - _LEAST:
            rows.append(three)
            sides.append(1)
    count = len(angles)
    table = np.zeros((len(rows), count + 1), np.int64)
    for number, (row, side) in enumerate(zip(rows, sides, strict=True)):
        table[number, row] = 1
        table[number, count] = side
    echelon, factor, rank = fmpz_mat(table.tolist()).rref()
    scale, sign = abs(int(factor)), 1 if factor > 0 else -1
    reduced = np.array([[sign * int(x) for x in row] for row in echelon.tolist()[:rank]], dtype=object)
    pivots = [int(np.flatnonzero(row)[0]) for row in reduced]
    if pivots[-1] == count:
        return None  # the equations of a misread optimum contradict each other
    for denominator in (10**4, 10**7, 10**10):
        rounded = np.array([round(x * denominator) for x in angles], dtype=object)
        rounded[pivots] = 0
        exact = rounded * scale
        exact[pivots] = reduced[:, count] * denominator - reduced[:, :count].dot(rounded)
        shared = math.gcd(scale * denominator, *exact.tolist())
        found = Angles(scale * denominator // shared, tuple(int(x) // shared for x in exact), False)
        if _holds(skeleton, found):
            return found
    return None


def _holds(skeleton: Skeleton, angles: Angles) -> bool:
    """Every condition, in whole numbers."""
    full, least = angles.denominator, int(angles.strict)
    around = [0] * len(skeleton.degree)
    for angle, edge in zip(angles.numerators, skeleton.edge, strict=True):
        if angle < least:
            return False
        around[edge] += angle
    for corner, vertex in enumerate(skeleton.vertex):
        three = sum(angles.numerators[corner // 4 * 6 + e] for e in _CORNERS[corner % 4])
        if three != full if skeleton.euler[vertex] == 0 else three > full - least:
            return False
    return all(total == 2 * full for total in around)
