"""Gluings, moves and 2-handles in plain Python: the twin of the native kernel, and what the checker stands on.

A gluing is 4n numbers 24 * neighbour + permutation, one per face (vertex i is opposite face i), permutations numbered
in lexicographic order. The order and the names of new tetrahedra are part of the format of certificates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from itertools import permutations, product

__all__ = [
    "EDGES",
    "Gluing",
    "Refused",
    "arcs",
    "around",
    "attach",
    "decode",
    "demand",
    "edges",
    "encode",
    "plan_three_two",
    "plan_two_three",
    "replay",
    "rest",
    "vertices",
]

PERMS = tuple(permutations(range(4)))
EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))

Perm = tuple[int, ...]
Gluing = list[list[tuple[int, Perm]]]
"""[tetrahedron][face] -> neighbour, and where the four vertices go."""
Arc = tuple[int, int, int]
"""(tetrahedron, vertex, face): an edge of the link of the vertex."""


class Refused(Exception):
    """Why a certificate does not hold."""


def demand(holds: bool, reason: str) -> None:
    """Refuse unless it holds."""
    if not holds:
        raise Refused(reason)


# --- triangulations -------------------------------------------------------------------------------------------------


def decode(codes: Sequence[int]) -> Gluing:
    """The gluing of its numbers, checked to be one."""
    demand(bool(codes) and len(codes) % 4 == 0 and all(type(c) is int for c in codes), "gluing: malformed")
    count = len(codes) // 4
    demand(all(0 <= c < 24 * count for c in codes), "gluing: a neighbour is out of range")
    gluing = [[(codes[4 * t + f] // 24, PERMS[codes[4 * t + f] % 24]) for f in range(4)] for t in range(count)]
    for t, f in product(range(count), range(4)):
        u, perm = gluing[t][f]
        demand((u, perm[f]) != (t, f) and gluing[u][perm[f]] == (t, inverse(perm)), "gluing: faces disagree")
    return gluing


def encode(gluing: Gluing) -> list[int]:
    """The numbers of a gluing."""
    return [24 * u + PERMS.index(perm) for row in gluing for u, perm in row]


@cache
def inverse(perm: Perm) -> Perm:
    """The inverse permutation."""
    return tuple(perm.index(i) for i in range(4))


@cache
def rest(*taken: int) -> tuple[int, ...]:
    """The other vertices, ascending."""
    return tuple(v for v in range(4) if v not in taken)


def around(gluing: Gluing, t: int, x: int, y: int) -> list[tuple[int, int, int, int, int]]:
    """The tetrahedra around an edge: (tetrahedron, x, y, z, w), each left through the face opposite z."""
    z, w = rest(x, y)
    first = here = (t, x, y, z, w)
    ring = []
    while True:
        ring.append(here)
        u, p = gluing[here[0]][here[3]]
        here = (u, p[here[1]], p[here[2]], p[here[4]], p[here[3]])
        if here[:4] == first[:4]:
            return ring


def edges(gluing: Gluing) -> tuple[dict[tuple[int, int, int], int], list[list[tuple[int, int, int, int, int]]]]:
    """Class of each (tetrahedron, x, y), and the ring of each class, in order of first appearance."""
    found: dict[tuple[int, int, int], int] = {}
    rings: list[list[tuple[int, int, int, int, int]]] = []
    for t in range(len(gluing)):
        for x, y in EDGES:
            if (t, x, y) in found:
                continue
            ring = around(gluing, t, x, y)
            for s, a, b, _, _ in ring:
                demand((s, b, a) not in found or found[s, b, a] != len(rings), "gluing: an edge meets its reverse")
                found[s, a, b] = len(rings)
            for s, a, b, _, _ in ring:
                found[s, b, a] = len(rings)
            rings.append(ring)
    return found, rings


def vertices(gluing: Gluing) -> tuple[dict[tuple[int, int], int], list[int]]:
    """Class of each (tetrahedron, vertex), and the genus of each link."""
    found: dict[tuple[int, int], int] = {}
    count = 0
    for start in product(range(len(gluing)), range(4)):
        border = [] if start in found else [start]
        while border:
            t, v = border.pop()
            if (t, v) not in found:
                found[t, v] = count
                border += [(gluing[t][f][0], gluing[t][f][1][v]) for f in rest(v)]
        count = max(found.values()) + 1
    euler = [0] * count
    for vertex in found.values():
        euler[vertex] -= 1  # a triangle less three halves of an edge, in halves
    euler = [e // 2 for e in euler]
    for ring in edges(gluing)[1]:
        t, x, y, _, _ = ring[0]
        euler[found[t, x]] += 1
        euler[found[t, y]] += 1
    return found, [1 - e // 2 for e in euler]


# --- moves ----------------------------------------------------------------------------------------------------------


def replay(gluing: Gluing, moves: Iterable[Iterable[int]]) -> Gluing:
    """The triangulation after moves (kind, tetrahedron, face or edge): 0 is 2-3, 1 is 3-2, 2 is 2-0."""
    for kind, t, place in moves:
        demand(kind in (0, 1, 2) and 0 <= t < len(gluing) and 0 <= place < (6 if kind else 4), "moves: out of range")
        gluing = (_two_three, _three_two, _two_zero)[kind](gluing, t, place)
    return gluing


def _rebuild(
    gluing: Gluing,
    removed: set[int],
    outer: dict[tuple[int, int], tuple[int, Perm]],
    inner: list[tuple[int, int, int, Perm]],
    fresh: int,
) -> Gluing:
    """Tetrahedra that stay keep their order, new ones follow. ``outer``: old face -> new tetrahedron, its vertices."""
    stay = [t for t in range(len(gluing)) if t not in removed]
    number = {t: i for i, t in enumerate(stay)}
    made: Gluing = [list(gluing[t]) for t in stay] + [[(-1, ())] * 4 for _ in range(fresh)]

    def join(t: int, f: int, u: int, perm: Perm) -> None:
        made[t][f], made[u][perm[f]] = (u, perm), (t, inverse(perm))

    for i, t in enumerate(stay):
        for f in range(4):
            u, perm = gluing[t][f]
            if u not in removed:
                made[i][f] = (number[u], perm)
    for t, f, u, perm in inner:
        join(len(stay) + t, f, len(stay) + u, perm)
    for (t, f), (new, names) in outer.items():
        u, perm = gluing[t][f]
        target, image = (number[u], (0, 1, 2, 3)) if u not in removed else outer[u, perm[f]]
        target += 0 if u not in removed else len(stay)
        whole = [0] * 4
        for v in range(4):
            whole[names[v]] = image[perm[v]]
        join(len(stay) + new, names[f], target, tuple(whole))
    return made


def _named(*order: int) -> Perm:
    """The permutation that gives these vertices the names 0, 1, 2, 3."""
    return inverse(order)


Plan = tuple[set[int], dict[tuple[int, int], tuple[int, Perm]], list[tuple[int, int, int, Perm]], int]
"""What :func:`_rebuild` takes after the gluing."""


def plan_two_three(gluing: Gluing, t: int, f: int) -> Plan:
    """New tetrahedron i leaves out the i-th vertex of the face: apex in t, apex beyond, the two others ascending."""
    u, p = gluing[t][f]
    demand(u != t, "moves: a 2-3 move needs two tetrahedra")
    base = rest(f)
    outer, inner = {}, []
    for i, x in enumerate(base):
        y, z = (v for v in base if v != x)
        outer[t, x] = (i, _named(f, x, y, z))
        outer[u, p[x]] = (i, _named(p[x], p[f], p[y], p[z]))
        for j in range(i + 1, 3):
            other = [v for v in base if v != base[j]]
            shared = next(v for v in base if v not in (x, base[j]))
            perm = [0, 1, 0, 0]
            perm[2 + [y, z].index(shared)] = 2 + other.index(shared)
            perm[2 + [y, z].index(base[j])] = 2 + other.index(x)
            inner.append((i, 2 + [y, z].index(base[j]), j, tuple(perm)))
    return {t, u}, outer, inner, 3


def plan_three_two(gluing: Gluing, t: int, e: int) -> Plan:
    """New tetrahedra: apex x, then apex y, over the triangle z, w (of t) and the far vertex of the others."""
    x, y = EDGES[e]
    ring = around(gluing, t, x, y)
    demand(len(ring) == 3 and len({s for s, *_ in ring}) == 3, "moves: a 3-2 move needs three tetrahedra at the edge")
    outer = {}
    for (s, a, b, c, d), spot in zip(ring, ((1, 2), (2, 3), (3, 1)), strict=True):
        free = 6 - sum(spot)
        for new, (apex, other) in enumerate(((a, b), (b, a))):
            names = [0] * 4
            names[apex], names[other], names[c], names[d] = 0, free, *spot
            outer[s, other] = (new, tuple(names))
    return {s for s, *_ in ring}, outer, [(0, 0, 1, (0, 1, 2, 3))], 2


def _two_three(gluing: Gluing, t: int, f: int) -> Gluing:
    return _rebuild(gluing, *plan_two_three(gluing, t, f))


def _three_two(gluing: Gluing, t: int, e: int) -> Gluing:
    return _rebuild(gluing, *plan_three_two(gluing, t, e))


def _two_zero(gluing: Gluing, t: int, e: int) -> Gluing:
    """Two tetrahedra around an edge are folded flat; the edges opposite must differ, and nothing else touch itself."""
    x, y = EDGES[e]
    z, w = rest(x, y)
    u, p = gluing[t][z]
    demand(len(around(gluing, t, x, y)) == 2 and t != u, "moves: a 2-0 move needs two tetrahedra at the edge")
    opposite = {(s, frozenset((a, b))) for s, a, b, _, _ in around(gluing, t, z, w)}
    demand((u, frozenset((p[z], p[w]))) not in opposite, "moves: a 2-0 move would pinch an edge")
    made = [list(row) for row in gluing]
    for end in (x, y):
        (a, q), (b, r) = gluing[t][end], gluing[u][p[end]]
        demand(not {a, b} & {t, u}, "moves: a 2-0 move would fold a tetrahedron on itself")
        perm = tuple(r[p[inverse(q)[v]]] for v in range(4))
        made[a][q[end]], made[b][r[p[end]]] = (b, perm), (a, inverse(perm))
    stay = [s for s in range(len(gluing)) if s not in (t, u)]
    return [[(stay.index(v), perm) for v, perm in made[s]] for s in stay]


# --- 2-handles ------------------------------------------------------------------------------------------------------
#
# The dual spine P has a vertex for each tetrahedron, a triple line for each face, a sheet for each edge. A curve on the
# boundary runs over P; P with a disc along it is a special spine again. Its new vertices are where the curve crosses a
# triple line (regions: the side of the curve towards the first tetrahedron, the other side, the two other vertices of
# the face ascending) and where strands on two sides of a sheet cross (inside and outside of the top chord, then of the
# bottom chord).


def arcs(gluing: Gluing) -> dict[Arc, int]:
    """Number of each edge of the vertex links, in order of first appearance."""
    found: dict[Arc, int] = {}
    for t, v, f in product(range(len(gluing)), range(4), range(4)):
        if v != f and (t, v, f) not in found:
            u, p = gluing[t][f]
            # every edge is two entries
            found[t, v, f] = found[u, p[v], p[f]] = len(found) // 2
    return found


class Curve:
    """A normal curve on the vertex links, pushed off to cross triple lines.

    Attributes:
        lines: Face (its first side) -> its crossings (vertex of the face, index) from its first tetrahedron on.
    """

    def __init__(self, gluing: Gluing, weights: Sequence[int]) -> None:
        self.gluing = gluing
        numbers = arcs(gluing)
        demand(len(weights) == 6 * len(gluing), "curve: must have six weights per tetrahedron")
        demand(all(type(w) is int and w >= 0 for w in weights), "curve: weights are whole numbers")
        self.weight = {arc: weights[number] for arc, number in numbers.items()}
        for t, v in product(range(len(gluing)), range(4)):
            sides = [self.weight[t, v, f] for f in rest(v)]
            demand(sum(sides) % 2 == 0 and 2 * max(sides) <= sum(sides), "curve: no normal curve has these weights")
        both = product(range(len(gluing)), range(4))
        self.faces = [(t, f) for t, f in both if (t, f) < (gluing[t][f][0], gluing[t][f][1][f])]
        self.lines = {}
        for t, f in self.faces:
            places = []
            for a in rest(f):
                here, there, _, _ = self.turns(t, f, a)
                count = abs(here - there)
                places += [(Fraction(2 * j + 1, 2 * count), a, j) for j in range(count)]
            self.lines[t, f] = [(a, j) for _, a, j in sorted(places)]

    def corner(self, t: int, v: int, x: int) -> int:
        """Strands around corner x of link triangle (t, v)."""
        return sum(self.weight[t, v, f] * (-1 if f == x else 1) for f in rest(v)) // 2

    def turns(self, t: int, f: int, a: int) -> tuple[int, int, int, int]:
        """At vertex a of a face: strands around its lower other vertex b on both sides; b and the last vertex c."""
        b, c = rest(a, f)
        u, p = self.gluing[t][f]
        return self.corner(t, a, b), self.corner(u, p[a], p[b]), b, c

    def leaving(self, t: int, v: int, f: int, cell: int, depth: int) -> tuple[Arc, int, int] | None:
        """The crossing at which strand `depth` from corner `cell` leaves its cell over this arc: arc, index, cell."""
        if (t, f) not in self.lines:
            u, p = self.gluing[t][f]
            t, v, f, cell = u, p[v], p[f], p[cell]
        here, there, b, _ = self.turns(t, f, v)
        strand = depth if cell == b else self.weight[t, v, f] - 1 - depth
        if min(here, there) <= strand < max(here, there):
            return (t, v, f), here - 1 - strand if here > there else strand - here, cell
        return None

    def partners(self) -> dict[tuple[Arc, int, int], tuple[Arc, int, int]]:
        """(arc, index, cell) of each crossing -> the crossing at the other end of its strand over that cell."""
        found = {}
        for (t, f), line in self.lines.items():
            for a, j in line:
                here, there, b, c = self.turns(t, f, a)
                strand = here - 1 - j if here > there else here + j
                u, p = self.gluing[t][f]
                # around one corner before the line, around the other one after it
                inward, outward = (b, c) if here > there else (c, b)
                starts = ((inward, (t, a, f), inward), (outward, (u, p[a], p[f]), p[outward]))
                for cell, (s, v, g), x in starts:
                    depth = strand if cell == b else self.weight[t, a, f] - 1 - strand
                    while True:
                        g = 6 - v - x - g
                        end = self.leaving(s, v, g, x, depth)
                        if end is not None:
                            break
                        s, q = self.gluing[s][g]
                        v, g, x = q[v], q[g], q[x]
                    found[(t, a, f), j, cell] = end
        return found


Face = tuple[int, tuple[int, ...]]
"""A tetrahedron and three of its vertices."""
Stop = tuple[tuple[Arc, int], int, bool, bool]
"""On the boundary of a sheet: crossing, vertex at the far end of the sheet's edge, on top, along the triple line."""


class _Spine:
    def __init__(self, gluing: Gluing, weights: Sequence[int]) -> None:
        self.curve = curve = Curve(gluing, weights)
        crossings = [((t, a, f), j) for (t, f), line in curve.lines.items() for a, j in line]
        demand(bool(crossings), "curve: bounds a disc")
        self.number = {crossing: len(gluing) + i for i, crossing in enumerate(crossings)}
        self.made: Gluing = [[(-1, ())] * 4 for _ in range(len(gluing) + len(crossings))]
        for (t, f), line in curve.lines.items():
            base = rest(f)
            last: Face = (t, tuple(base))
            for a, j in line:
                tet = self.number[(t, a, f), j]
                names = [[self.name((t, a, f), v, after) for v in base] for after in (False, True)]
                self.join(last, (tet, tuple(names[0])))
                last = (tet, tuple(names[1]))
            u, p = gluing[t][f]
            self.join(last, (u, tuple(p[v] for v in base)))
        self.partner = curve.partners()
        for ring in edges(gluing)[1]:
            self.fill(self.boundary(ring))
        demand(all(u >= 0 for row in self.made for u, _ in row), "curve: leaves a face open")

    def name(self, arc: Arc, v: int, after: bool) -> int:
        """The region at vertex v of the face in the tetrahedron of a crossing."""
        return int(after) if v == arc[1] else 2 + rest(arc[1], arc[2]).index(v)

    def join(self, one: Face, two: Face) -> None:
        perm = [0] * 4
        for i, j in zip((*one[1], 6 - sum(one[1])), (*two[1], 6 - sum(two[1])), strict=True):
            perm[i] = j
        self.made[one[0]][6 - sum(one[1])] = (two[0], tuple(perm))
        self.made[two[0]][6 - sum(two[1])] = (one[0], inverse(tuple(perm)))

    def boundary(self, ring: list[tuple[int, int, int, int, int]]) -> list[Stop]:
        stops: list[Stop] = []
        for t, x, y, z, _ in ring:
            u, p = self.curve.gluing[t][z]
            forward = (t, z) in self.curve.lines
            side, ends = ((t, z), (x, y)) if forward else ((u, p[z]), (p[x], p[y]))
            for a, j in self.curve.lines[side][:: 1 if forward else -1]:
                if a in ends:
                    far = ends[1] if a == ends[0] else ends[0]
                    stops.append((((side[0], a, side[1]), j), far, a == ends[0], forward))
        return stops

    def end(self, stop: Stop, last: bool) -> Face:
        """The face at an end of a chord: inside, outside, below. Inside follows the start and precedes the end."""
        (arc, j), far, _, forward = stop
        inner = int(last != forward)
        return self.number[arc, j], (inner, 1 - inner, self.name(arc, far, False))

    def fill(self, stops: list[Stop]) -> None:
        place = {(*crossing, far): i for i, (crossing, far, _, _) in enumerate(stops)}
        chords: tuple[list[tuple[int, int]], ...] = ([], [])
        for i, (crossing, far, top, _) in enumerate(stops):
            j = place[self.partner[*crossing, far]]
            if i < j:
                chords[0 if top else 1].append((i, j))

        def inside(chord: tuple[int, int], i: int) -> bool:
            return chord[0] < i < chord[1]

        tets = {}
        for s, b in product(*chords):
            if inside(s, b[0]) != inside(s, b[1]):
                tets[s, b] = tets[b, s] = len(self.made)
                self.made.append([(-1, ())] * 4)
        for level in (0, 1):
            for mine in chords[level]:
                met = [other for other in chords[1 - level] if (mine, other) in tets]
                met.sort(key=lambda other: other[0] if inside(mine, other[0]) else other[1])
                own, far = (0, 2) if level == 0 else (2, 0)
                last = self.end(stops[mine[0]], False)
                for other in met:
                    outside = int(not inside(other, mine[0]))
                    self.join(last, (tets[mine, other], (own, own + 1, far + outside)))
                    last = (tets[mine, other], (own, own + 1, far + 1 - outside))
                self.join(last, self.end(stops[mine[1]], True))


def attach(gluing: Gluing, weights: Sequence[int]) -> Gluing:
    """The triangulation with a 2-handle along a normal curve of the vertex link (6n weights, see :func:`arcs`).

    Raises:
        Refused: The weights are those of no curve that crosses a triple line.
    """
    return _Spine(gluing, weights).made
