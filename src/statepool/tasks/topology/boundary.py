"""The boundary of a manifold: a triangulation with one vertex, its slopes, and the same curves on the vertex link."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from statepool.tasks.topology.errors import InvalidCurve
from statepool.tasks.topology.manifold import PERMS, Manifold, core
from statepool.tasks.topology.metric import Metric

__all__ = ["Boundary", "Slope"]

_AROUND = ((1, 2, 3), (0, 3, 2), (0, 1, 3), (0, 2, 1))
"""Corners of the link triangle at each vertex of a tetrahedron, anticlockwise; side s is opposite corner s."""

_BUDGET = 3_000_000
"""Nodes of the search for curves of one size."""


@dataclass(frozen=True)
class Slope:
    """An isotopy class of essential simple closed curves on the closed boundary surface."""

    weights: tuple[int, ...]
    """Normal coordinates of a representative: how often it crosses each edge of the boundary model."""
    key: tuple[int, ...]
    """Normal coordinates of the geodesic of the model's metric: equal exactly for isotopic curves."""
    separating: bool

    @property
    def name(self) -> str:
        """The key as text."""
        return ",".join(map(str, self.key))


class Boundary:
    """The boundary surface of genus g: 4g - 2 triangles, 6g - 3 edges, one vertex that is no puncture.

    The vertex link of the ideal triangulation has a vertex for each end of an edge; a tree of its edges is contracted,
    always the first that can be, so that the model depends on the gluing alone. The curve on the link with the same
    weights, and 0 on the tree, is the same curve.
    """

    def __init__(self, manifold: Manifold) -> None:
        self.manifold = manifold
        self.genus = manifold.genus
        gluing = manifold.gluing
        across = [0] * (12 * manifold.tetrahedra)
        place = [[_AROUND[v].index(f) if f != v else -1 for f in range(4)] for v in range(4)]
        for t in range(manifold.tetrahedra):
            for v in range(4):
                for s, f in enumerate(_AROUND[v]):
                    u, perm = gluing[4 * t + f] // 24, PERMS[gluing[4 * t + f] % 24]
                    across[12 * t + 3 * v + s] = 12 * u + 3 * perm[v] + place[perm[v]][perm[f]]
        self._link = list(across)
        self._alive = [True] * (len(across) // 3)
        self._stands = [{i} for i in range(len(across))]
        """Per side: the sides of link triangles that run the same way along edges it stands for."""
        self._contract(across)
        sides = [3 * t + s for t in range(len(self._alive)) if self._alive[t] for s in range(3)]
        number = {side: i for i, side in enumerate(sides)}
        self.across = [number[across[side]] for side in sides]
        self.edge = [-1] * len(sides)
        self._side = {link: i for i, side in enumerate(sides) for link in self._stands[side]}
        """Side of a link triangle -> side of the model that runs the same way; contracted ones are missing."""
        self.edges = 0
        """Edges of the model: 6g - 3."""
        for i, other in enumerate(self.across):
            if self.edge[i] < 0:
                self.edge[i] = self.edge[other] = self.edges
                self.edges += 1
        assert self.edges == 6 * self.genus - 3

    def _contract(self, across: list[int]) -> None:
        """Contract link edges with two ends until one vertex is left; each takes two triangles away."""
        while (corner := self._corners(across)) is not None:
            for side in range(len(across)):
                t, other = side // 3, across[side]
                u = other // 3
                ends = corner[3 * t + (side + 1) % 3], corner[3 * t + (side + 2) % 3]
                if not self._alive[t] or ends[0] == ends[1]:
                    continue
                if t == u:  # a vertex of degree one, in a loop that shrinks with it
                    side = 9 * t + 3 - side - other
                    other = across[side]
                if self._fold(across, side, other):
                    break
            else:  # pragma: no cover - a triangulated surface with two vertices has such an edge
                raise AssertionError("no edge of the boundary can be contracted")

    def _fold(self, across: list[int], side: int, other: int) -> bool:
        """Make the two triangles at an edge flat; False where that leaves no triangulation."""
        gone = {side // 3, other // 3}
        mate = {}
        for s in (side, other):
            one, two = (s // 3 * 3 + (s + k) % 3 for k in (1, 2))
            if across[one] != two:
                mate[one], mate[two] = two, one
        chains = []
        for start, at in mate.items():
            if across[start] // 3 in gone:
                continue
            left = [at]  # the sides over which flat triangles are left run the same way
            while across[at] // 3 in gone:
                at = mate[across[at]]
                left.append(at)
            chains.append((across[start], across[at], left))
        if len({end for a, b, _ in chains for end in (a, b)}) != len(chains) or len(chains) not in (2, 4):
            return False
        for a, b, left in chains:
            across[a] = b
            self._stands[a] |= set().union(*(self._stands[i] for i in left))
        for t in gone:
            self._alive[t] = False
        return True

    def _corners(self, across: list[int]) -> list[int] | None:
        """Vertex at each corner; None if there is one vertex."""
        corner = [-1] * len(across)
        count = 0
        for first in range(len(across)):
            if corner[first] >= 0 or not self._alive[first // 3]:
                continue
            at = first
            while corner[at] < 0:
                corner[at] = count
                # over the side that follows the corner, to the same vertex in the next triangle
                over = across[at // 3 * 3 + (at + 2) % 3]
                at = over // 3 * 3 + (over + 2) % 3
            count += 1
        return corner if count > 1 else None

    @cached_property
    def metric(self) -> Metric:
        """The hyperbolic metric with generic edge lengths that keys and distances are read off."""
        return Metric(self.across, self.edge)

    @cached_property
    def surface(self) -> Any:
        """The native model."""
        return core.Surface(self.across, self.edge, self.metric.matrices, self.metric.reach)

    @cached_property
    def _arcs(self) -> list[int]:
        """A side of each link edge, edges in order of first appearance as (tetrahedron, vertex, face)."""
        seen: set[int] = set()
        order: list[int] = []
        for t in range(self.manifold.tetrahedra):
            for v in range(4):
                for f in range(4):
                    if f != v and (side := 12 * t + 3 * v + _AROUND[v].index(f)) not in seen:
                        seen |= {side, self._link[side]}
                        order.append(side)
        return order

    def link_weights(self, weights: Sequence[int]) -> list[int]:
        """The curve on the vertex link: 6n weights, edges (tetrahedron, vertex, face) in order of first appearance."""
        sides = (self._side.get(link) for link in self._arcs)
        return [0 if side is None else weights[self.edge[side]] for side in sides]

    def slope_along(self, steps: Sequence[tuple[int, int, int, int, int]]) -> Slope:
        """The slope of a closed path on the vertex link.

        Args:
            steps: (tetrahedron, vertex, face, from, to), see :mod:`statepool.tasks.topology.transport`.

        Raises:
            InvalidCurve: It is no simple closed curve, or bounds a disc.
        """
        word: list[int] = []
        for t, v, f, start, end in steps:
            s = _AROUND[v].index(f)
            side = 12 * t + 3 * v + s
            if (_AROUND[v][(s + 1) % 3], _AROUND[v][(s + 2) % 3]) != (start, end):
                side = self._link[side]
            if (kept := self._side.get(side)) is not None:
                word.append(kept)
        word = self._tight(word)
        exits: list[int] = []
        for side, target in zip(word, [*word[1:], *word[:1]], strict=True):
            # on the left of the path, around the vertex from one edge to the next
            out = side // 3 * 3 + (side + 1) % 3
            while out != target:
                exits.append(out)
                side = self.across[out]
                out = side // 3 * 3 + (side + 1) % 3
        exits = self._tight(exits)
        if not exits:
            raise InvalidCurve("curve: bounds a disc", param="steps")
        entry = [self.across[side] for side in exits]
        right = [int(out % 3 == (into + 1) % 3) for into, out in zip(entry, [*exits[1:], *exits[:1]], strict=True)]
        key = self.metric.key(self.surface, entry, right)
        return self.slope(list(key))

    def _tight(self, word: Sequence[int]) -> list[int]:
        """A cyclic word of sides without steps back."""
        kept: list[int] = []
        for side in word:
            if kept and kept[-1] == self.across[side]:
                kept.pop()
            else:
                kept.append(side)
        while len(kept) > 1 and kept[0] == self.across[kept[-1]]:
            kept = kept[1:-1]
        return kept

    def slope(self, weights: Sequence[int]) -> Slope:
        """The slope of a normal curve.

        Raises:
            InvalidCurve: Wrong number, triangle inequality or parity fails, not connected, or the curve bounds a disc.
        """
        checked = self._checked(weights)
        entry, right = self.surface.path(checked)
        if len(entry) < sum(checked):
            raise InvalidCurve("weights: the curve is not connected; give one component", param="weights")
        if all(w == 2 for w in checked):
            raise InvalidCurve("weights: the curve goes around the vertex and bounds a disc", param="weights")
        key = self.metric.key(self.surface, entry, right)
        return Slope(tuple(checked), key, all(w % 2 == 0 for w in checked))

    def _checked(self, weights: Sequence[int]) -> list[int]:
        if len(weights) != self.edges:
            raise InvalidCurve(
                f"weights: the boundary of this manifold has {self.edges} edges, {len(weights)} weights were given; "
                "weights belong to one labelling of one triangulation",
                param="weights",
            )
        if any(type(w) is not int or w < 0 for w in weights):
            raise InvalidCurve("weights: must be whole numbers from 0", param="weights")
        if not any(weights):
            raise InvalidCurve("weights: are all 0; that is no curve", param="weights")
        for t in range(len(self.edge) // 3):
            a, b, c = (weights[e] for e in self.edge[3 * t : 3 * t + 3])
            names = ", ".join(map(str, self.edge[3 * t : 3 * t + 3]))
            if (a + b + c) % 2:
                raise InvalidCurve(f"weights: edges {names} bound a triangle and add up to {a + b + c}, an odd number")
            if 2 * max(a, b, c) > a + b + c:
                raise InvalidCurve(f"weights: edges {names} bound a triangle and {a}, {b}, {c} break its inequality")
        return list(weights)

    def slopes(self, limit: int, *, separating: bool = True, most: int = 60) -> Iterator[Slope]:
        """Different slopes, those that cross the model least first.

        Args:
            limit: How many at most.
            separating: Only those that separate the surface; else only those that do not.
            most: Largest sum of (half) weights that is looked at.
        """
        seen: set[tuple[int, ...]] = set()
        for total in range(1, most + 1):
            rows, complete = self.surface.curves(2 if separating else 1, total, 40 * limit, _BUDGET)
            for row in rows:
                if not separating and all(w % 2 == 0 for w in row):
                    continue
                entry, right = self.surface.path(row)
                key = self.metric.key(self.surface, entry, right)
                if key not in seen:
                    seen.add(key)
                    yield Slope(tuple(row), key, separating)
                    if len(seen) == limit:
                        return
            if not complete:
                return

    def distance(self, one: Slope, two: Slope) -> int:
        """Least number of crossings of the two slopes on the closed surface."""
        return self.metric.distance(self.surface, one.key, two.key)
