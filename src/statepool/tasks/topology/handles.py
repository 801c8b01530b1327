"""Attach a 2-handle along a slope and decide what the manifold is, with a certificate for every answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from statepool.tasks.topology.angles import Angles, find
from statepool.tasks.topology.boundary import Boundary, Slope
from statepool.tasks.topology.checker import FORMAT
from statepool.tasks.topology.manifold import Manifold, Skeleton, core
from statepool.tasks.topology.words import Trail, judge

__all__ = ["Decision", "Verdict", "attach_2handle", "certify", "decide", "manifold_record", "record_of", "settle"]

Verdict = Literal["simple", "irreducible", "boundary-reducible", "splits", "undecided"]

_PATIENCE = 24
"""Detours without success after which a triangulation counts as small."""
_FIRST, _SECOND = 8, 24
"""Triangulations tried before and after the fundamental group is asked."""


@dataclass(frozen=True)
class Decision:
    """What M(slope) is, and the proof.

    Attributes:
        verdict: ``simple``: irreducible, boundary-irreducible, atoroidal and anannular. ``irreducible``: irreducible
            and boundary-irreducible. ``boundary-reducible``: the boundary compresses. ``splits``: reducible or
            boundary-reducible. ``undecided``: none of these was proved.
        gluing: An ideal triangulation of M(slope).
        moves: From the triangulation that attaching makes to this one.
    """

    verdict: Verdict
    gluing: tuple[int, ...]
    moves: tuple[tuple[int, int, int], ...] = ()
    angles: Angles | None = None
    group: Trail | None = None


def attach_2handle(boundary: Boundary, slope: Slope) -> tuple[int, ...]:
    """The gluing of an ideal triangulation of M(slope)."""
    return tuple(core.attach(list(boundary.manifold.gluing), boundary.link_weights(slope.weights)))


def decide(boundary: Boundary, slope: Slope, *, seed: int = 0, effort: int = 1) -> Decision:
    """Decide M(slope); the same seed gives the same certificate.

    Args:
        boundary: Of the manifold.
        slope: Where the handle goes.
        seed: Of the retriangulations.
        effort: How many times as many triangulations to try before giving up.
    """
    return settle(attach_2handle(boundary, slope), seed=seed, effort=effort)


def settle(gluing: Sequence[int], *, seed: int = 0, effort: int = 1) -> Decision:
    """Decide an ideal triangulation without spheres at its vertices."""
    moves: list[tuple[int, int, int]] = []
    here = list(gluing)
    weak: Decision | None = None
    for attempt in range(_FIRST + _SECOND * effort):
        ups = 0 if attempt == 0 else 1 + attempt % 4
        here, log = core.reduce(here, seed * 1_000_003 + attempt, ups, _PATIENCE)
        moves += log
        angles = find(here, weak=weak is None)
        if angles is not None and angles.strict:
            return Decision("simple", tuple(here), tuple(moves), angles)
        if angles is not None:
            weak = Decision("irreducible", tuple(here), tuple(moves), angles)
        if attempt == _FIRST - 1 and weak is not None:
            return weak
        if attempt >= _FIRST - 1 and attempt % 4 == 3:
            told = _by_group(here, moves)
            if told is not None:
                return told
            if weak is not None:
                return weak
    return Decision("undecided", tuple(gluing))


def _by_group(gluing: Sequence[int], moves: Sequence[tuple[int, int, int]]) -> Decision | None:
    judged = judge(gluing)
    if judged is None:
        return None
    kind, trail, betti = judged
    verdict: Verdict = "irreducible"
    if kind == "Z":
        genera = sum(1 - euler // 2 for euler in Skeleton.of(gluing).euler)
        # a sphere that does not separate would give a cycle that the boundary does not carry
        verdict = "splits" if betti > genera else "boundary-reducible"
    return Decision(verdict, tuple(gluing), tuple(moves), None, trail)


def certify(manifold: Manifold) -> Angles | None:
    """Strict angles on the frozen triangulation itself: the proof that the manifold is simple, or None."""
    return find(manifold.gluing)


def _told(angles: Angles) -> dict[str, Any]:
    return {"denominator": angles.denominator, "numerators": list(angles.numerators)}


def record_of(boundary: Boundary, slope: Slope, decision: Decision) -> dict[str, Any]:
    """The certificate as plain JSON; it refers to the certificate of the manifold."""
    made: dict[str, Any] = {
        "format": FORMAT,
        "kind": "slope",
        "manifold": boundary.manifold.id,
        "weights": list(slope.weights),
        "curve": boundary.link_weights(slope.weights),
        "key": list(slope.key),
        "separating": slope.separating,
        "verdict": decision.verdict,
    }
    if decision.verdict != "undecided":
        made["moves"] = [number for move in decision.moves for number in move]
    if decision.angles is not None:
        made["angles"] = _told(decision.angles)
    if decision.group is not None:
        made["group"] = decision.group
    return made


def manifold_record(manifold: Manifold, angles: Angles) -> dict[str, Any]:
    """The certificate that a manifold is simple."""
    return {
        "format": FORMAT,
        "kind": "manifold",
        "id": manifold.id,
        "isosig": manifold.isosig,
        "genus": manifold.genus,
        "gluing": list(manifold.gluing),
        "angles": _told(angles),
    }
