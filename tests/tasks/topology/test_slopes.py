"""The boundary model, slopes, geodesics and distances, against brute force, mpmath and a second metric."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import product

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.tasks.topology.boundary import Boundary
from statepool.tasks.topology.censuses import census
from statepool.tasks.topology.errors import InvalidCurve
from statepool.tasks.topology.manifold import from_isosig
from statepool.tasks.topology.metric import Metric, crossings, walk
from statepool.tasks.topology.watch import other_distance

SIGS = ("cMcabbjdw", "cPcbbbihq", "dLQbcccdefw", "eLAkaccddjcopj")


@cache
def model(sig: str) -> Boundary:
    return Boundary(from_isosig(sig))


@pytest.mark.parametrize("sig", SIGS)
def test_the_model_has_one_vertex_and_the_right_genus(sig: str) -> None:
    boundary = model(sig)
    triangles = len(boundary.edge) // 3
    assert (triangles, boundary.edges) == (4 * boundary.genus - 2, 6 * boundary.genus - 3)
    assert all(boundary.across[boundary.across[i]] == i != boundary.across[i] for i in range(3 * triangles))
    # around the vertex: over the side before each corner, through all corners
    corner, seen = 0, set()
    while corner not in seen:
        seen.add(corner)
        over = boundary.across[corner // 3 * 3 + (corner + 2) % 3]
        corner = over // 3 * 3 + (over + 2) % 3
    assert len(seen) == 3 * triangles


def components(boundary: Boundary, weights: tuple[int, ...]) -> int:
    """Components of a normal curve by joining the points where it crosses edges."""
    parent: dict[tuple[int, int], tuple[int, int]] = {}

    def root(x: tuple[int, int]) -> tuple[int, int]:
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    def point(side: int, place: int) -> tuple[int, int]:
        other = boundary.across[side]
        return (side, place) if side < other else (other, weights[boundary.edge[side]] - 1 - place)

    for t in range(len(boundary.edge) // 3):
        w = [weights[boundary.edge[3 * t + s]] for s in range(3)]
        for c in range(3):
            one, two = (c + 1) % 3, (c + 2) % 3
            for depth in range((w[one] + w[two] - w[c]) // 2):
                # corner c ends side c + 1 and begins side c + 2
                a, b = point(3 * t + one, w[one] - 1 - depth), point(3 * t + two, depth)
                parent[root(a)] = root(b)
    return len({root(x) for x in parent})


def test_small_curves_are_all_there() -> None:
    """Every weight vector with half weights up to 1, tried one by one, against the enumeration by size."""
    boundary = model("cMcabbjdw")
    wanted = set()
    for half in product(range(2), repeat=boundary.edges):
        w = tuple(2 * h for h in half)
        rows = [[half[e] for e in boundary.edge[3 * t : 3 * t + 3]] for t in range(6)]
        if any(2 * max(row) > sum(row) for row in rows) or not any(half) or all(half):
            continue
        if components(boundary, w) == 1:
            wanted.add(w)
    found = set()
    for total in range(1, boundary.edges + 1):
        rows, complete = boundary.surface.curves(2, total, 10**6, 10**7)
        assert complete
        found |= {tuple(row) for row in rows if max(row) <= 2}
    assert found == wanted


@pytest.mark.parametrize("sig", SIGS)
def test_keys_are_geodesics_and_do_not_depend_on_the_representative(sig: str) -> None:
    boundary = model(sig)
    slopes = [*boundary.slopes(25), *boundary.slopes(15, separating=False)]
    assert len({slope.key for slope in slopes}) == 40
    for slope in slopes[::4]:
        entry, right = boundary.surface.path(list(slope.weights))
        plain = walk(boundary.metric, entry, right)
        count = Counter(boundary.edge[side] for side in plain[0])
        assert tuple(count[e] for e in range(boundary.edges)) == slope.key
        assert boundary.slope(list(slope.key)).key == slope.key
        # the same curve read backwards and from another place
        turned = [len(entry) - 1 - i for i in range(len(entry))]
        # a strand is entered where it was left, and a turn to the right becomes one to the left
        back_entry = [boundary.across[entry[(i + 1) % len(entry)]] for i in turned]
        back_right = [1 - right[i] for i in turned]
        assert boundary.metric.key(boundary.surface, back_entry, back_right) == slope.key


@pytest.mark.parametrize("sig", SIGS[:3])
def test_distances_do_not_depend_on_the_metric_and_have_the_right_parity(sig: str) -> None:
    boundary = model(sig)
    slopes = list(boundary.slopes(60))
    for one, two in zip(slopes[::5], slopes[3::5], strict=False):
        distance = boundary.distance(one, two)
        assert distance == boundary.distance(two, one) == other_distance(boundary, one, two)
        # separating curves cross an even number of times, in genus two a multiple of four
        assert distance % (4 if boundary.genus == 2 else 2) == 0
    assert all(boundary.distance(slope, slope) == 0 for slope in slopes[:5])
    loops = list(boundary.slopes(12, separating=False))
    assert {boundary.distance(one, two) for one in loops for two in loops} >= {0, 1, 2}


def test_disjoint_slopes_are_at_distance_zero() -> None:
    """Two curves whose weights add up to a curve of two components are disjoint."""
    boundary, found = model("dLQbcccdefw"), 0
    slopes = list(boundary.slopes(40))
    for i, one in enumerate(slopes):
        for two in slopes[:i]:
            both = tuple(a + b for a, b in zip(one.weights, two.weights, strict=True))
            if components(boundary, both) != 2:
                continue
            parts = _split(boundary, both)
            if parts == {one.weights, two.weights}:
                assert boundary.distance(one, two) == 0
                found += 1
    assert found > 0


def _split(boundary: Boundary, weights: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Weights of the component through the first strand, and of the rest."""
    entry, _ = boundary.surface.path(list(weights))
    count = Counter(boundary.edge[side] for side in entry)
    one = tuple(count[e] for e in range(boundary.edges))
    return {one, tuple(w - a for w, a in zip(weights, one, strict=True))}


def test_the_metric_is_smooth_at_the_vertex() -> None:
    """The motions around the vertex multiply to the identity of PSL(2, R), to more digits than a double has."""
    boundary = model("dLQbcccdefw")
    metric = boundary.metric
    with mpmath.workdps(40):
        motions = metric.motions()
        side, whole = 0, mpmath.eye(2)
        for _ in range(len(boundary.edge)):
            a, b, c, d = motions[side][0]
            whole = whole * mpmath.matrix([[a, b], [c, d]])
            side = boundary.across[side // 3 * 3 + (side + 2) % 3]
        assert side == 0 and abs(abs(whole[0, 0]) - 1) < 1e-30 and abs(whole[0, 1]) < 1e-30


def test_long_curves_are_walked_with_more_digits() -> None:
    """Curves with 80 crossings need more than 32 digits: the native walker says so, and mpmath takes over."""
    boundary = Boundary(from_isosig("cMcabbjdw"))
    short = next(boundary.slopes(1))
    rows, _ = boundary.surface.curves(2, 40, 3, 10**6)
    long = [boundary.slope(row) for row in rows]
    assert boundary.metric.walked > 0
    assert all(boundary.slope(list(slope.key)).key == slope.key for slope in long)
    assert boundary.distance(long[0], short) == other_distance(boundary, long[0], short)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=9, max_size=9))
def test_any_weights_give_a_slope_or_a_reason(weights: list[int]) -> None:
    boundary = model("cMcabbjdw")
    try:
        slope = boundary.slope(weights)
    except InvalidCurve as error:
        assert "weights:" in error.message
        return
    assert components(boundary, tuple(weights)) == 1
    assert slope.separating == all(w % 2 == 0 for w in weights)


def test_closed_paths_of_link_edges_are_slopes() -> None:
    """A boundary component of the tree, walked around, bounds a disc."""
    boundary = model("cMcabbjdw")
    with pytest.raises(InvalidCurve, match="bounds a disc"):
        boundary.slope_along([(0, 0, 1, 2, 3), (0, 0, 2, 3, 1), (0, 0, 3, 1, 2)])


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_boundaries_of_a_whole_census() -> None:
    for sig in census(4, 2):
        boundary = Boundary(from_isosig(sig))
        assert boundary.edges == 15 and len(list(boundary.slopes(3))) == 3


def test_another_salt_is_another_metric() -> None:
    boundary = model("cMcabbjdw")
    other = Metric(boundary.across, boundary.edge, 3)
    assert other.reach != boundary.metric.reach
    one, two = (boundary.surface.path(list(slope.weights)) for slope in list(boundary.slopes(30))[-2:])
    with mpmath.workdps(15):
        assert crossings(walk(other, *one), walk(other, *two)) == crossings(
            walk(boundary.metric, *one), walk(boundary.metric, *two)
        )
