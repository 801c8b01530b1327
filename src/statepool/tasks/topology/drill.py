"""Positives by construction: drill an arc out of a boundary-reducible manifold and keep what is provably simple.

An edge of an ideal triangulation of N that joins two boundary components is an arc c. Folding the tetrahedra around it
flat takes the dual sheet out of the spine: what is left triangulates M = N - c, and the curve around that sheet is the
slope whose 2-handle gives N back. It separates, since c joins two components.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from statepool.tasks.topology.angles import Angles, find
from statepool.tasks.topology.boundary import Boundary, Slope
from statepool.tasks.topology.manifold import (
    MIRROR,
    Manifold,
    Skeleton,
    core,
    from_regina,
    mirrored,
    oriented,
    regina,
    to_regina,
)
from statepool.tasks.topology.spine import decode, encode
from statepool.tasks.topology.transport import Step, carry

__all__ = ["Planted", "planted"]

_KEPT = 200
"""Triangulations with good arcs that walks begin at."""


@dataclass(frozen=True)
class Planted:
    """A simple manifold with a slope known to make it boundary-reducible."""

    manifold: Manifold
    angles: Angles
    slope: Slope
    tries: int
    """Arcs that were drilled since the one before."""


@cache
def _unlink(components: int) -> tuple[int, ...]:
    """The exterior of an unlink: solid tori, summed."""
    made = regina().Link(components).complement()
    made.simplify()
    return from_regina(made)


def planted(seed: int, *, least: int = 3, most: int = 9) -> Iterator[Planted]:
    """Genus two manifolds with a planted slope, without end, all different; the same seed gives the same.

    A random walk among triangulations of the exterior of the two-component unlink; every arc on its way is tried. Most
    arcs near the start are too simple; a triangulation with a good one is kept, and later walks begin there.

    Args:
        seed: Of the walk.
        least: Tetrahedra of the manifold, at least.
        most: And at most.
    """
    noise = Random(f"planted {seed}")
    seen: set[str] = set()
    good: list[list[int]] = []
    tries = 0
    while True:
        afresh = not good or noise.random() < 0.1
        here = list(_unlink(2)) if afresh else noise.choice(good[-_KEPT:])
        for _ in range(noise.randint(10, 40) if afresh else noise.randint(2, 10)):
            here = _step(here, noise, most + 5)
        skeleton = Skeleton.of(here)
        for edge in range(len(skeleton.degree)):
            tries += 1
            drilled = core.collapse(here, *divmod(skeleton.edge.index(edge), 6))
            if drilled is None:
                continue
            small, moves = core.reduce(drilled[0], noise.getrandbits(32), 0, 10)
            if not least <= len(small) // 4 <= most or min(Skeleton.of(small).degree) < 3:
                continue
            isosig = str(to_regina(small).isoSig())
            if isosig in seen:
                continue
            seen.add(isosig)
            if find(small) is not None:
                good.append(here)
                yield _with_slope(drilled[0], drilled[1], moves, tries)
                tries = 0


def _step(here: list[int], noise: Random, most: int) -> list[int]:
    """A random 2-3 or 3-2 move; the latter always where there are many tetrahedra."""
    count = len(here) // 4
    if count < most and noise.random() < 0.6:
        return core.apply(here, 0, noise.randrange(count), noise.randrange(4)) or here
    skeleton = Skeleton.of(here)
    three = [angle for angle, edge in enumerate(skeleton.edge) if skeleton.degree[edge] == 3]
    if not three:
        return here
    tet, place = divmod(noise.choice(three), 6)
    return core.apply(here, 1, tet, place) or here


def _with_slope(drilled: list[int], path: list[Step], moves: list[tuple[int, int, int]], tries: int) -> Planted:
    """The small triangulation in an oriented labelling, with its certificate and the slope."""
    gluing, path = carry(decode(drilled), path, moves)
    small = encode(gluing)
    mirror = mirrored(small)
    path = [(t, *(MIRROR[v] for v in names)) if mirror[t] else (t, *names) for t, *names in path]  # type: ignore[misc]
    manifold = Manifold(oriented(small))
    angles = find(manifold.gluing)
    assert angles is not None
    return Planted(manifold, angles, Boundary(manifold).slope_along(path), tries)
