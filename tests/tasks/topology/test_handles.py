"""Triangulations, moves, 2-handles, angle structures and verdicts, against Regina and the plain twins."""

from __future__ import annotations

import importlib.util
import random

import pytest
import regina
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.tasks.topology import spine
from statepool.tasks.topology.angles import find
from statepool.tasks.topology.boundary import Boundary
from statepool.tasks.topology.censuses import census
from statepool.tasks.topology.errors import InvalidManifold, OutOfTime
from statepool.tasks.topology.handles import attach_2handle, certify, decide
from statepool.tasks.topology.manifold import Manifold, Skeleton, core, from_isosig, oriented, to_regina
from statepool.tasks.topology.names import names

GENUS_2 = ("cMcabbjdw", "cMcabbjds", "cMcabbjij", "cMcabbjik", "cMcabbjmk", "cPcbbbdht", "cPcbbbdhq", "cPcbbbihq")
GENUS_3 = ("dLQbcccdefw", "dLQbcccdefk", "dLQbcccdenb", "dLQbcccdesb")
"""The four with a boundary-reducing slope among those that cross the model least."""


def test_census_counts_are_the_published_ones() -> None:
    """Fujii: 8; Frigerio, Martelli and Petronio: 74."""
    found = [list(census(n)) for n in (2, 3)]
    assert [len(set(sigs)) for sigs in found] == [8, 74] == [len(sigs) for sigs in found]
    assert set(found[0]) == set(GENUS_2)
    assert len(list(census(3, 2))) == 166


@pytest.mark.slow
def test_larger_census() -> None:
    assert len(set(census(4))) == 2340
    assert len(set(census(4, 2))) == 4636
    assert len(set(census(5))) == 98_204


def test_a_census_is_ended_in_time() -> None:
    with pytest.raises(OutOfTime, match=r"longer than 0\.2 s"):
        list(census(6, seconds=0.2))


@pytest.mark.parametrize("sig", [*GENUS_2[::3], *GENUS_3[:2]])
def test_handles_match_their_twin_and_the_homology_of_the_quotient(sig: str) -> None:
    boundary = Boundary(from_isosig(sig))
    gluing = spine.decode(boundary.manifold.gluing)
    for separating in (True, False):
        for slope in boundary.slopes(8, separating=separating):
            made = attach_2handle(boundary, slope)
            plain = spine.attach(gluing, boundary.link_weights(slope.weights))
            assert spine.encode(plain) == list(made)
            euler = Skeleton.of(made).euler
            assert len(euler) == 1 + separating
            assert sum(1 - e // 2 for e in euler) == boundary.genus - (not separating)
            oracle = to_regina(made)
            assert oracle.isValid() and oracle.isOrientable() and oracle.isConnected()
            # a separating curve is null-homologous: the handle adds no relation and its core no cycle
            if separating:
                assert oracle.homology().str() == to_regina(boundary.manifold.gluing).homology().str()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(GENUS_2 + GENUS_3), st.integers(0, 2**32), st.integers(0, 8))
def test_moves_keep_the_manifold_and_match_their_twin(sig: str, seed: int, ups: int) -> None:
    """Regina's own simplification leads back to a triangulation of the same size with the same signature set."""
    gluing = from_isosig(sig).gluing
    there, log = core.reduce(list(gluing), seed, ups, 5)
    assert spine.encode(spine.replay(spine.decode(gluing), log)) == list(there)
    oracle, start = to_regina(there), to_regina(gluing)
    assert oracle.isValid() and oracle.homology().str() == start.homology().str()
    assert Skeleton.of(there).euler == Skeleton.of(gluing).euler


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_single_moves_are_reginas(kind: int) -> None:
    """Wherever Regina allows a 2-3 or 3-2 move, both results are isomorphic; a 2-0 move of ours is one of Regina's."""
    noise, compared = random.Random(kind), 0
    start = list(from_isosig("dLQbcccdefw").gluing)
    for _ in range(250):
        here = start
        for _ in range(noise.randrange(6)):
            here = core.apply(here, 0, noise.randrange(len(here) // 4), noise.randrange(4)) or here
        oracle = to_regina(here)
        tet, place = noise.randrange(len(here) // 4), noise.randrange(4 if kind == 0 else 6)
        ours = core.apply(here, kind, tet, place)
        cell = oracle.tetrahedron(tet).triangle(place) if kind == 0 else oracle.tetrahedron(tet).edge(place)
        theirs = oracle.move20(cell) if kind == 2 else oracle.pachner(cell)
        assert theirs or ours is None
        if ours is not None:
            assert to_regina(ours).isIsomorphicTo(oracle) is not None
            compared += 1
    assert compared > 3


def test_angles_are_what_they_claim_in_fractions() -> None:
    for sig in (*GENUS_2, *GENUS_3):
        boundary = Boundary(from_isosig(sig))
        angles = certify(boundary.manifold)
        assert angles is not None and angles.strict
    solid = regina.Link(1).complement()  # the exterior of an unknot: a solid torus, which no angles prove irreducible
    assert find(_codes(solid), weak=True) is None


def _codes(made: regina.Triangulation3) -> list[int]:
    from statepool.tasks.topology.manifold import NUMBER

    tets = [made.tetrahedron(t) for t in range(made.size())]
    return [
        24 * tet.adjacentTetrahedron(f).index() + NUMBER[tuple(tet.adjacentGluing(f)[i] for i in range(4))]
        for tet in tets
        for f in range(4)
    ]


@pytest.mark.slow
def test_a_hyperbolic_filling_is_the_one_snappy_knows() -> None:
    """A 2-handle on a genus two manifold leaves two cusps; SnapPy's census knows the result by another road."""
    if importlib.util.find_spec("snappy") is None:
        pytest.skip("needs the extra statepool[names]")
    boundary = Boundary(from_isosig("cMcabbjdw"))
    slope = next(boundary.slopes(1))
    decision = decide(boundary, slope)
    assert decision.verdict == "simple"
    found = names(decision.gluing)
    assert found["solution"] == "all tetrahedra positively oriented"
    assert "L10n59(0,0)(0,0)" in found["names"]
    assert "tori" in names(boundary.manifold.gluing)["snappy"]


@pytest.mark.parametrize("sig", GENUS_3)
def test_known_boundary_reducing_slopes(sig: str) -> None:
    """One slope among the first makes T² x I with a 1-handle; Regina finds the disc."""
    boundary = Boundary(from_isosig(sig))
    reducing = [s for s in boundary.slopes(6) if decide(boundary, s).verdict == "boundary-reducible"]
    assert len(reducing) == 1
    oracle = to_regina(decide(boundary, reducing[0]).gluing)
    oracle.truncateIdeal()
    oracle.simplify()
    assert oracle.hasCompressingDisc()


def test_the_two_exceptions_in_genus_2() -> None:
    """Of the first slopes of the smallest manifolds, all but one or two give simple manifolds, and none a disc."""
    verdicts = [
        decide(boundary, slope).verdict
        for boundary in map(Boundary, map(from_isosig, GENUS_2[::2]))
        for slope in boundary.slopes(30)
    ]
    assert set(verdicts) <= {"simple", "irreducible"}
    assert verdicts.count("irreducible") <= 2


BAD = {
    "nonsense": "no isomorphism signature",
    "cPcbbbiht": "boundary is a torus",
}


@pytest.mark.parametrize(("sig", "reason"), BAD.items())
def test_bad_manifolds_are_named(sig: str, reason: str) -> None:
    with pytest.raises(InvalidManifold, match=reason):
        from_isosig(sig)


def test_bad_gluings_are_named() -> None:
    good = list(from_isosig("cMcabbjdw").gluing)
    cases = {
        "four numbers per": good[:-1],
        "no neighbour": [-1, *good[1:]],
        "disagree": [good[1], good[0], *good[2:]],
        "not connected": good + [code + 48 for code in good],
    }
    for reason, gluing in cases.items():
        with pytest.raises(InvalidManifold, match=reason):
            Manifold(tuple(gluing))
    mobius = regina.Example3.gieseking()
    with pytest.raises(InvalidManifold, match="not orientable"):
        oriented(_codes(mobius))
    two = regina.Link(2).complement()
    two.orient()
    with pytest.raises(InvalidManifold, match="2 ideal vertices"):
        Manifold(tuple(_codes(two)))
