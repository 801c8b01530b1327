"""Handle additions as tasks for rollouts: shorten a curve by flips, find a planted slope, find two of them.

Every answer is checked exactly; the reward is dense where there is a measure of progress, and nothing can be recited,
since problems are drawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any

from statepool.core.errors import StatepoolError
from statepool.tasks.base import Message, Problem, Tool, Verdict
from statepool.tasks.topology.boundary import Boundary
from statepool.tasks.topology.drill import Planted, planted
from statepool.tasks.topology.flips import Flippable
from statepool.tasks.topology.handles import certify, decide
from statepool.tasks.topology.manifold import Manifold, from_isosig

__all__ = ["FlipTask", "PairTask", "SlopeTask"]

_SMALL = ("cMcabbjdw", "cMcabbjds", "cMcabbjij", "cMcabbjik", "cMcabbjmk", "cPcbbbdht", "cPcbbbdhq", "cPcbbbihq")


_KNOWN = {
    3: '{"isosig": "dLQbcccdefw", "slopes": [[2,2,2,0,0,0,0,0,0,2,0,0,0,0,0]]}',
    4: '{"isosig": "eLPkbcdddmgsgv", "slopes": [[0,0,0,0,0,0,2,2,2,0,0,0,0,2,0,0,0,0,0,0,0],'
    "[0,0,0,0,2,2,0,0,0,0,0,0,0,0,0,0,0,0,0,2,2]]}",
}
"""Best answers of :class:`PairTask` by genus, from a scan of the smallest manifolds."""


@lru_cache(64)
def _boundary(gluing: tuple[int, ...]) -> Boundary:
    return Boundary(Manifold(gluing))


def _numbers(answer: str) -> list[int] | None:
    """The last line of numbers."""
    found = re.findall(r"^[\s\[\(]*(-?\d+(?:[,\s]+-?\d+)*)[\s\]\).]*$", answer, re.MULTILINE)
    return [int(part) for part in re.findall(r"-?\d+", found[-1])] if found else None


def _triangles(boundary: Boundary) -> str:
    rows = [boundary.edge[3 * t : 3 * t + 3] for t in range(len(boundary.edge) // 3)]
    return "; ".join(" ".join(map(str, row)) for row in rows)


@dataclass(frozen=True)
class FlipTask:
    """Shorten a simple closed curve to two crossings by flips of edges; the reward is how far it came."""

    least: int = 10
    """Crossings of the curve at first, at least."""
    name: str = "topology-flips"

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        noise = Random(f"{self.name} {seed} {self.least}")
        while True:
            boundary = _boundary(from_isosig(noise.choice(_SMALL)).gluing)
            slopes = [s for s in boundary.slopes(150, separating=False) if sum(s.weights) >= self.least]
            if slopes:
                yield self._problem(boundary, noise.choice(slopes).weights)

    def _problem(self, boundary: Boundary, weights: tuple[int, ...]) -> Problem:
        start = Flippable.of(boundary, weights)
        answer = start.shortest_descent()
        text = (
            f"A closed surface is cut into triangles by edges 0 to {boundary.edges - 1}. The triangles, with their "
            f"edges "
            f"in anticlockwise order: {_triangles(boundary)}. Where an edge stands twice in one triangle, both its "
            f"sides "
            f"are there. A simple closed curve crosses the edges {', '.join(map(str, weights))} times. Flipping an "
            f"edge e "
            "replaces it by the other diagonal of the quadrilateral a, b, c, d around it (triangles e a b and e c d), "
            "which is called e again and is crossed max(w(a) + w(c), w(b) + w(d)) - w(e) times; the new triangles are "
            "e b c and e d a. Give edges to flip, one after the other, so that the curve ends up crossing the edges "
            "two "
            "times altogether. Answer with the edges, separated by commas, on the last line."
        )
        facts = {"gluing": list(boundary.manifold.gluing), "weights": list(weights)}
        spoken = ",".join(map(str, answer))
        return Problem(self.name, ({"role": "user", "content": text},), spoken, (spoken,), facts=facts)

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """The messages of the problem."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """None: the flips are the answer."""
        return problem.tools

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """1 at two crossings; on the way there, the part of the crossings that is gone, at most 0.9."""
        flips = _numbers(answer)
        if flips is None:
            return Verdict(0.0, "there is no list of edges on a line of its own")
        here = Flippable.of(_boundary(tuple(problem.facts["gluing"])), problem.facts["weights"])
        first = here.crossings
        for number, edge in enumerate(flips, 1):
            if not here.flip(edge):
                return Verdict(0.0, f"flip {number}: edge {edge} does not exist or has one triangle on both sides")
        if here.crossings == 2:
            return Verdict(1.0, f"two crossings after {len(flips)} flips")
        gone = max(0.0, (first - here.crossings) / (first - 2))
        return Verdict(min(0.9, 0.9 * gone), f"{here.crossings} crossings are left of {first}")


@dataclass(frozen=True)
class SlopeTask:
    """Find the slope of a planted arc exterior: the one whose 2-handle makes the boundary compressible."""

    name: str = "topology-slope"

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        for found in planted(seed):
            yield self._problem(found)

    def _problem(self, found: Planted) -> Problem:
        boundary = _boundary(found.manifold.gluing)
        text = (
            f"The ideal triangulation with isomorphism signature {found.manifold.isosig}, in the oriented labelling "
            f"{json.dumps(list(found.manifold.gluing))} (for each face of each tetrahedron 24 times the neighbour "
            f"plus the "
            "number of the gluing permutation in lexicographic order), is a simple 3-manifold whose boundary has "
            "genus 2. "
            f"Its boundary is triangulated by edges 0 to {boundary.edges - 1}; triangles: {_triangles(boundary)}. One "
            "separating simple closed curve on the boundary has the property that attaching a 2-handle along it makes "
            "the "
            "boundary compressible. Answer with the numbers of times that curve crosses the edges, separated by "
            "commas, "
            "on the last line."
        )
        answer = ",".join(map(str, found.slope.weights))
        facts = {"gluing": list(found.manifold.gluing)}
        return Problem(self.name, ({"role": "user", "content": text},), answer, (found.slope.name,), facts=facts)

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """The messages of the problem."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """None: the weights are the answer."""
        return problem.tools

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """1 for a boundary-reducing separating slope, 0.1 for another separating slope, 0.05 for any slope, else 0."""
        weights = _numbers(answer)
        if weights is None:
            return Verdict(0.0, "there is no list of weights on a line of its own")
        boundary = _boundary(tuple(problem.facts["gluing"]))
        try:
            slope = boundary.slope(weights)
        except StatepoolError as error:
            return Verdict(0.0, error.message)
        if not slope.separating:
            return Verdict(0.05, "the slope does not separate the boundary")
        verdict = decide(boundary, slope).verdict
        return Verdict(
            1.0 if verdict == "boundary-reducible" else 0.1, f"the 2-handle makes a manifold that is {verdict}"
        )


@dataclass(frozen=True)
class PairTask:
    """Search for a simple manifold with two boundary-reducing separating slopes that cross: no answer is known.

    A problem names a genus of at least three. Reference answers have one such slope (genus 3, 0.5) or two that are
    disjoint (genus 4, 0.9).
    """

    name: str = "topology-pair"

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        noise = Random(f"{self.name} {seed}")
        while True:
            genus = noise.choice((3, 4, 5))
            text = (
                f"Find a simple 3-manifold (an ideal triangulation with one boundary component, of genus {genus}) and "
                "two different separating slopes on its boundary, crossing each other if you can, such that attaching "
                "a 2-handle along either makes the boundary compressible. Answer with JSON on one line: "
                '{"isosig": "...", "slopes": [[...], [...]]}, weights in the boundary model of '
                "statepool.tasks.topology."
            )
            best = _KNOWN.get(genus, "")
            yield Problem(self.name, ({"role": "user", "content": text},), best, (), facts={"genus": genus})

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """The messages of the problem."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """None: a manifold and its slopes are the answer."""
        return problem.tools

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """1 for two slopes that cross, 0.9 for two, 0.5 for one, 0.1 for a certified simple manifold, else 0."""
        found = _json(answer)
        if found is None:
            return Verdict(0.0, "there is no line of JSON with isosig and slopes")
        try:
            manifold = from_isosig(found["isosig"])
            if manifold.genus != problem.facts["genus"]:
                return Verdict(0.0, f"the boundary has genus {manifold.genus}, not {problem.facts['genus']}")
            if certify(manifold) is None:
                return Verdict(
                    0.0, "this triangulation has no strict angles, so the manifold is not known to be simple"
                )
            boundary = _boundary(manifold.gluing)
            slopes = [boundary.slope(weights) for weights in islice(found["slopes"], 2)]
        except StatepoolError as error:
            return Verdict(0.0, error.message)
        good = {s.key: s for s in slopes if s.separating and decide(boundary, s).verdict == "boundary-reducible"}
        crossed = boundary.distance(*good.values()) if len(good) == 2 else 0
        score = 1.0 if crossed else (0.1, 0.5, 0.9)[len(good)]
        return Verdict(score, f"{len(good)} of the slopes make the boundary compressible; two cross {crossed} times")


def _json(answer: str) -> dict[str, Any] | None:
    for line in reversed(answer.splitlines()):
        if line.strip().startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                return None
            fits = (
                isinstance(found, dict)
                and isinstance(found.get("isosig"), str)
                and isinstance(found.get("slopes"), list)
                and all(isinstance(w, list) for w in found["slopes"])
            )
            return found if fits else None
    return None
