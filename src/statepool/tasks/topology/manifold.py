"""Manifolds as frozen ideal triangulations: oriented, labelled, and never relabelled behind a curve's back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

from statepool.core.errors import InvalidConfig
from statepool.tasks.topology.errors import InvalidManifold

try:
    from statepool.native import _topology  # type: ignore[attr-defined]  # compiled: no source for mypy to find
except ImportError as error:  # pragma: no cover - a machine without a compiler
    raise ImportError(
        f"statepool.tasks.topology needs its native module ({error}); run `make native` with a C++ compiler"
    ) from error

__all__ = [
    "MIRROR",
    "PERMS",
    "Manifold",
    "Skeleton",
    "core",
    "from_isosig",
    "from_regina",
    "mirrored",
    "oriented",
    "regina",
    "to_regina",
]

core: Any = _topology

PERMS = tuple(permutations(range(4)))
"""Permutations of the vertices of a tetrahedron, in lexicographic order: their numbers stand in gluings."""

NUMBER = {perm: number for number, perm in enumerate(PERMS)}
ODD = tuple(sum(p[i] > p[j] for i in range(4) for j in range(i + 1, 4)) % 2 == 1 for p in PERMS)


@dataclass(frozen=True)
class Skeleton:
    """Classes of edges and vertices of a triangulation with n tetrahedra."""

    edge: tuple[int, ...]
    """[6n]: class of the edge 01, 02, 03, 12, 13, 23 of each tetrahedron."""
    vertex: tuple[int, ...]
    """[4n]"""
    degree: tuple[int, ...]
    """Per class of edges."""
    euler: tuple[int, ...]
    """Euler characteristic of the link, per class of vertices: 2 - 2 * genus of that boundary component."""
    valid: bool
    """No edge is glued to itself backwards."""

    @staticmethod
    def of(gluing: Sequence[int]) -> Skeleton:
        """The skeleton of a gluing."""
        edge, vertex, degree, euler, valid = core.skeleton(list(gluing))
        return Skeleton(tuple(edge), tuple(vertex), tuple(degree), tuple(euler), bool(valid))


@dataclass(frozen=True)
class Manifold:
    """A compact orientable 3-manifold with one boundary component of genus at least two.

    Attributes:
        gluing: 4n numbers, one for each face of each tetrahedron: 24 * neighbour + number of the permutation that says
            where the vertices go. Orientation is kept: every permutation is odd.

    Raises:
        InvalidManifold: The numbers are no such triangulation; the sentence says why.
    """

    gluing: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            skeleton = Skeleton.of(self.gluing)
        except (ValueError, TypeError) as error:
            raise InvalidManifold(f"gluing: {error}", param="gluing") from error
        if not all(ODD[code % 24] for code in self.gluing):
            raise InvalidManifold("gluing: is not oriented; pass it through `oriented` first", param="gluing")
        reached, border = {0}, [0]
        while border:
            t = border.pop()
            fresh = {code // 24 for code in self.gluing[4 * t : 4 * t + 4]} - reached
            reached |= fresh
            border += fresh
        if len(reached) * 4 != len(self.gluing):
            raise InvalidManifold("gluing: the triangulation is not connected; take one component", param="gluing")
        if not skeleton.valid:
            raise InvalidManifold("gluing: an edge is glued to itself backwards", param="gluing")
        if len(skeleton.euler) != 1:
            raise InvalidManifold(
                f"gluing: has {len(skeleton.euler)} ideal vertices; a manifold with one boundary component has one",
                param="gluing",
            )
        if skeleton.euler[0] > -2:
            kind = "a torus" if skeleton.euler[0] == 0 else "a sphere"
            raise InvalidManifold(f"gluing: the boundary is {kind}; slopes need genus two or more", param="gluing")

    @property
    def tetrahedra(self) -> int:
        """How many tetrahedra."""
        return len(self.gluing) // 4

    @cached_property
    def skeleton(self) -> Skeleton:
        """Edges and vertices."""
        return Skeleton.of(self.gluing)

    @property
    def genus(self) -> int:
        """Genus of the boundary."""
        return 1 - self.skeleton.euler[0] // 2

    @cached_property
    def id(self) -> str:
        """A hash of this very labelling: weights belong to it and to no other."""
        return hashlib.sha256(",".join(map(str, self.gluing)).encode()).hexdigest()[:16]

    @cached_property
    def isosig(self) -> str:
        """Regina's signature of the triangulation up to relabelling."""
        return str(to_regina(self.gluing).isoSig())


def mirrored(gluing: Sequence[int]) -> list[bool]:
    """Which tetrahedra to mirror (swap vertices 2 and 3) so that every gluing keeps orientation.

    Raises:
        InvalidManifold: The triangulation is not orientable.
    """
    count = len(gluing) // 4
    sign = [0] * count
    for first in range(count):
        border = [] if sign[first] else [first]
        sign[first] = sign[first] or 1
        while border:
            t = border.pop()
            for code in gluing[4 * t : 4 * t + 4]:
                u, wanted = code // 24, sign[t] if ODD[code % 24] else -sign[t]
                if sign[u] not in (0, wanted):
                    raise InvalidManifold("gluing: the triangulation is not orientable", param="gluing")
                if sign[u] == 0:
                    sign[u] = wanted
                    border.append(u)
    return [s < 0 for s in sign]


MIRROR = (0, 1, 3, 2)
"""New names of the vertices of a mirrored tetrahedron."""


def oriented(gluing: Sequence[int]) -> tuple[int, ...]:
    """The same triangulation, tetrahedra mirrored where needed so that every gluing keeps orientation.

    Raises:
        InvalidManifold: It is not orientable.
    """
    maps = [MIRROR if mirror else (0, 1, 2, 3) for mirror in mirrored(gluing)]
    fresh = [0] * len(gluing)
    for place, code in enumerate(gluing):
        t, u, perm = place // 4, code // 24, PERMS[code % 24]
        images = [0] * 4
        for i in range(4):
            images[maps[t][i]] = maps[u][perm[i]]
        fresh[4 * t + maps[t][place % 4]] = 24 * u + NUMBER[tuple(images)]
    return tuple(fresh)


def regina() -> Any:
    """Regina.

    Raises:
        InvalidConfig: The extra is not installed.
    """
    try:
        import regina as found
    except ImportError as error:
        raise InvalidConfig(f"topology: {error}; pip install 'statepool[topology]'") from error
    return found


def to_regina(gluing: Sequence[int]) -> Any:
    """The triangulation as Regina's ``Triangulation3``."""
    library = regina()
    made = library.Triangulation3()
    made.newTetrahedra(len(gluing) // 4)
    for place, code in enumerate(gluing):
        tet, face = made.tetrahedron(place // 4), place % 4
        if tet.adjacentTetrahedron(face) is None:
            tet.join(face, made.tetrahedron(code // 24), library.Perm4(*PERMS[code % 24]))
    return made


def from_regina(made: Any) -> tuple[int, ...]:
    """The gluing of Regina's ``Triangulation3``, oriented.

    Raises:
        InvalidManifold: It has boundary faces, or is not orientable.
    """
    codes = []
    for tet in (made.tetrahedron(t) for t in range(made.size())):
        for face in range(4):
            other = tet.adjacentTetrahedron(face)
            if other is None:
                raise InvalidManifold("manifold: has boundary faces; make it ideal first", param="manifold")
            perm = tet.adjacentGluing(face)
            codes.append(24 * other.index() + NUMBER[tuple(perm[i] for i in range(4))])
    return oriented(codes)


def from_isosig(sig: str) -> Manifold:
    """The manifold of an isomorphism signature, in the labelling that its definition fixes, oriented.

    Raises:
        InvalidManifold: It is no signature, or not of a manifold this room takes.
    """
    library = regina()
    try:
        made = library.Triangulation3.fromIsoSig(sig)
    except (library.InvalidArgument, TypeError) as error:
        raise InvalidManifold(
            f"manifold: '{sig}' is no isomorphism signature of a triangulation", param="sig"
        ) from error
    return Manifold(from_regina(made))
