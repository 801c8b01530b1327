"""A closed path on the vertex link, carried along while moves change the triangulation under it.

A path is a list of (tetrahedron, vertex, face, from, to): along the edge of the link at that vertex that lies on that
face, from the link vertex on the edge to ``from`` to the one on the edge to ``to``. Vertices of the link are no
punctures, so a path may be pushed over one that a move takes away; it ends up on faces that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from statepool.tasks.topology.spine import EDGES, Gluing, around, plan_three_two, plan_two_three, replay, rest

__all__ = ["Step", "carry"]

Step = tuple[int, int, int, int, int]


def carry(gluing: Gluing, path: Sequence[Step], moves: Iterable[tuple[int, int, int]]) -> tuple[Gluing, list[Step]]:
    """The triangulation after moves, and the path on it."""
    path = list(path)
    for kind, t, place in moves:
        if kind == 0:
            path = _over_face(gluing, path, t, place)
            removed, outer, _, _ = plan_two_three(gluing, t, place)
        else:
            path = _over_edge(gluing, path, t, place)
            if kind == 1:
                removed, outer, _, _ = plan_three_two(gluing, t, place)
            else:
                removed, outer = {t, gluing[t][rest(*EDGES[place])[0]][0]}, {}
        stay = [s for s in range(len(gluing)) if s not in removed]
        number = {s: i for i, s in enumerate(stay)}
        moved = []
        for s, v, f, a, b in path:
            if s in removed and (s, f) in outer:
                new, names = outer[s, f]
                moved.append((len(stay) + new, names[v], names[f], names[a], names[b]))
                continue
            if s in removed:  # a face that a 2-0 move leaves to its neighbour
                u, p = gluing[s][f]
                s, v, f, a, b = u, p[v], p[f], p[a], p[b]
            moved.append((number[s], v, f, a, b))
        path = moved
        gluing = replay(gluing, [(kind, t, place)])
    return gluing, path


def _over_face(gluing: Gluing, path: Sequence[Step], t: int, f: int) -> list[Step]:
    """Push a path off the face of a 2-3 move, to the side of tetrahedron t."""
    u, p = gluing[t][f]
    pushed: list[Step] = []
    for step in path:
        s, v, g, a, b = step
        if (s, g) == (u, p[f]):
            v, a, b = p.index(v), p.index(a), p.index(b)
        elif (s, g) != (t, f):
            pushed.append(step)
            continue
        pushed += [(t, v, b, a, f), (t, v, a, f, b)]
    return pushed


def _over_edge(gluing: Gluing, path: Sequence[Step], t: int, e: int) -> list[Step]:
    """Push a path off the faces around the edge that a 3-2 or 2-0 move takes away."""
    x, y = EDGES[e]
    ring = around(gluing, t, x, y)
    # faces at the edge, seen from the tetrahedron that is left over them; names of the vertices around the edge
    count = len(ring)
    seen: dict[tuple[int, int], tuple[int, dict[int, str | int]]] = {}
    for i, (s, a, b, c, d) in enumerate(ring):
        names: dict[int, str | int] = {a: "x", b: "y", c: i, d: (i + 1) % count}
        seen[s, c] = i, names
        seen[s, d] = i, names
    # each step on such a face: (vertex, from, to) by name
    named: list[tuple[Step, tuple[str | int, str | int, str | int] | None]] = []
    for step in path:
        s, v, f, a, b = step
        found = seen.get((s, f))
        named.append((step, None if found is None else (found[1][v], found[1][a], found[1][b])))
    # begin where the path is not about to leave a link vertex that goes
    start = next(
        (i for i, (_, n) in enumerate(named) if n is None or n[0] not in ("x", "y") or n[1] not in ("x", "y")), 0
    )
    named = named[start:] + named[:start]
    pushed: list[Step] = []
    i = 0
    while i < len(named):
        step, names_here = named[i]
        if names_here is None:
            pushed.append(step)
        elif names_here[0] not in ("x", "y"):  # at a vertex around the edge: from one end of it to the other
            s, v, f, a, b = step
            pushed += [(s, v, b, a, f), (s, v, a, f, b)]
        else:  # into the link vertex that goes, and out of it with the next step
            after = named[i + 1][1]
            assert after is not None and after[0] == names_here[0] and names_here[2] == after[1]
            low, high = names_here[1], after[2]
            if low != high:
                pushed.append(_across(ring, names_here[0] == "x", low, high))
            i += 1
        i += 1
    return pushed


def _across(ring: Sequence[tuple[int, int, int, int, int]], at_x: bool, low: str | int, high: str | int) -> Step:
    """At an end of the edge, from one vertex around it to another, over the face opposite the other end."""
    count = len(ring)
    for i, (s, x, y, c, d) in enumerate(ring):
        places: dict[str | int, int] = {i: c, (i + 1) % count: d}
        if low in places and high in places:
            corner, face = (x, y) if at_x else (y, x)
            return s, corner, face, places[low], places[high]
    raise AssertionError("two vertices around an edge of degree two or three have a tetrahedron in common")
