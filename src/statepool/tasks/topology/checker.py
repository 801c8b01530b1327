"""Check certificates of handle additions with the standard library alone: whole numbers, no floats, no Regina.

It shares no code with what found them. ``python -m statepool.tasks.topology.checker FILE`` prints one line per
certificate and exits 1 if one is refused. docs/topology.md says what each claim means and why the certificate proves
it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

from statepool.tasks.topology.spine import (
    EDGES,
    Gluing,
    Refused,
    attach,
    decode,
    demand,
    edges,
    replay,
    rest,
    vertices,
)

__all__ = ["FORMAT", "Checker", "Group", "reduced", "shorter"]

FORMAT = "statepool-topology/1"
VERDICTS = ("simple", "irreducible", "boundary-reducible", "splits", "undecided")

Word = tuple[int, ...]
"""A cyclic word; a letter is +-(generator + 1)."""


# --- angles ---------------------------------------------------------------------------------------------------------


def check_angles(gluing: Gluing, angles: dict[str, Any], strict: bool) -> None:
    """An angle structure: strict proves the manifold simple, else it is irreducible and boundary-irreducible."""
    full, numerators = angles["denominator"], angles["numerators"]
    demand(type(full) is int and full > 0 and all(type(a) is int for a in numerators), "angles: are no fractions")
    demand(len(numerators) == 6 * len(gluing), "angles: there must be six per tetrahedron")
    value = {}
    for (t, (x, y)), a in zip(product(range(len(gluing)), EDGES), numerators, strict=True):
        demand(a > 0 if strict else a >= 0, "angles: one is not positive")
        value[t, x, y] = value[t, y, x] = a
    for ring in edges(gluing)[1]:
        total = sum(value[t, x, y] for t, x, y, _, _ in ring)
        demand(total == 2 * full, "angles: do not add up to 2 pi around an edge")
    corner, genus = vertices(gluing)
    for (t, v), vertex in corner.items():
        three = sum(value[t, v, w] for w in rest(v))
        demand(genus[vertex] > 0, "angles: there is a sphere at a vertex")
        if genus[vertex] == 1:
            demand(three == full, "angles: do not add up to pi at a torus")
        else:
            demand(three < full if strict else three <= full, "angles: are too large at a corner")


# --- fundamental groups ---------------------------------------------------------------------------------------------


def reduced(word: Sequence[int]) -> Word:
    """Freely and cyclically reduced."""
    letters: list[int] = []
    for letter in word:
        if letters and letters[-1] == -letter:
            letters.pop()
        else:
            letters.append(letter)
    first, last = 0, len(letters)
    while last - first > 1 and letters[first] == -letters[last - 1]:
        first, last = first + 1, last - 1
    return tuple(letters[first:last])


class Group:
    """A finitely presented group and the steps that keep it, up to isomorphism.

    At first: generators are the faces outside a spanning tree (breadth first from tetrahedron 0, faces ascending), in
    order of first appearance, directed from that side; relators are the edges, in order.
    """

    def __init__(self, gluing: Gluing) -> None:
        tree, reached, queue = set(), {0}, [0]
        for t in queue:
            for f in range(4):
                u, p = gluing[t][f]
                if u not in reached:
                    reached.add(u)
                    queue.append(u)
                    tree |= {(t, f), (u, p[f])}
        demand(len(reached) == len(gluing), "gluing: is not connected")
        letter: dict[tuple[int, int], int] = {}
        for t, f in product(range(len(gluing)), range(4)):
            if (t, f) not in tree and (t, f) not in letter:
                u, p = gluing[t][f]
                letter[t, f] = len(letter) // 2 + 1
                letter[u, p[f]] = -letter[t, f]
        self.generators = set(range(1, len(letter) // 2 + 1))
        rings = edges(gluing)[1]
        self.relators = [[letter[t, z] for t, _, _, z, _ in ring if (t, z) not in tree] for ring in rings]
        self._tidy()

    def _tidy(self) -> None:
        words = [reduced(word) for word in self.relators]
        self.relators = [list(word) for word in words if word]

    def solve(self, index: int, generator: int) -> None:
        """Remove a generator that a relator holds once, and the relator."""
        word = self.relators.pop(index)
        demand(sum(abs(x) == generator for x in word) == 1, "group: solve needs a generator that occurs once")
        at = next(i for i, x in enumerate(word) if abs(x) == generator)
        others = word[at + 1 :] + word[:at]  # generator^e * others = 1
        value = [-x for x in reversed(others)] if word[at] > 0 else others
        self.generators.discard(generator)
        self._replace({generator: value})

    def turn(self, letter: int, kinds: Sequence[int]) -> None:
        """A Whitehead automorphism: x to x, xa, a'x or a'xa for kinds 0 to 3, generators ascending."""
        order = sorted(self.generators)
        demand(abs(letter) in order and len(kinds) == len(order), "group: turn does not fit the generators")
        demand(all(k in (0, 1, 2, 3) for k in kinds), "group: turn has an unknown kind")
        self._replace(whitehead(letter, order, kinds))

    def multiply(self, index: int, by: int, start: int, at: int, sign: int) -> None:
        """A relator, read from `start`, times another one or its inverse, read from `at`."""
        demand(index != by and sign in (1, -1), "group: a relator cannot be multiplied by itself")
        one, two = self.relators[index], self.relators[by]
        two = two if sign > 0 else [-x for x in reversed(two)]
        demand(0 <= start <= len(one) and 0 <= at <= len(two), "group: multiply is out of range")
        self.relators[index] = one[start:] + one[:start] + two[at:] + two[:at]
        self._tidy()

    def _replace(self, images: dict[int, list[int]]) -> None:
        self.relators = [substitute(word, images) for word in self.relators]
        self._tidy()

    def play(self, steps: Sequence[Sequence[Any]]) -> None:
        """Take steps (name, arguments...)."""
        for name, *arguments in steps:
            demand(name in ("solve", "turn", "multiply"), f"group: unknown step {name!r}")
            getattr(self, name)(*arguments)

    def spare(self) -> bool:
        """Whether some generator is in no relator: the group is Z * something."""
        return bool(self.generators - {abs(x) for word in self.relators for x in word})

    def indecomposable(self) -> bool:
        """Whether it is visibly no free product and not Z (Shenitzer).

        One relator, which no Whitehead automorphism shortens and which holds all of two or more generators.
        """
        if len(self.relators) != 1 or len(self.generators) < 2 or self.spare():
            return False
        return shorter(self.relators, sorted(self.generators)) is None

    def betti(self) -> int:
        """Rank of the first homology over the rationals."""
        order = sorted(self.generators)
        rows = []
        for word in self.relators:
            count = Counter(x for x in word)
            rows.append([Fraction(count[g] - count[-g]) for g in order])
        rank = 0
        for column in range(len(order)):
            pivot = next((row for row in rows[rank:] if row[column]), None)
            if pivot is None:
                continue
            rows.remove(pivot)
            rows.insert(rank, pivot)
            for i in range(rank + 1, len(rows)):
                factor = rows[i][column] / pivot[column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], pivot, strict=True)]
            rank += 1
        return len(order) - rank


def substitute(word: Sequence[int], images: dict[int, list[int]]) -> list[int]:
    """The word with generators replaced."""
    out: list[int] = []
    for x in word:
        image = images.get(abs(x))
        out += [x] if image is None else image if x > 0 else [-y for y in reversed(image)]
    return out


def whitehead(letter: int, order: Sequence[int], kinds: Sequence[int]) -> dict[int, list[int]]:
    """Images of the generators."""
    images = {}
    for x, kind in zip(order, kinds, strict=True):
        if x != abs(letter):
            images[x] = [-letter] * (kind >= 2) + [x] + [letter] * (kind % 2)
    return images


def automorphisms(order: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """All Whitehead automorphisms that multiply."""
    for a in order:
        for letter in (a, -a):
            yield from (
                (letter, kinds) for kinds in product(*(range(4) if x != a else (0,) for x in order)) if any(kinds)
            )


def shorter(relators: Sequence[Sequence[int]], order: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
    """The first Whitehead automorphism that makes the cyclic words shorter together, or None."""
    size = sum(map(len, relators))
    for letter, kinds in automorphisms(order):
        images = whitehead(letter, order, kinds)
        if sum(len(reduced(substitute(word, images))) for word in relators) < size:
            return letter, kinds
    return None


# --- certificates ---------------------------------------------------------------------------------------------------


class Checker:
    """Checks records in order; slopes refer to manifolds that came before."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Gluing, int]] = {}
        self._counts: dict[str, Counter[str]] = {}

    def check(self, record: dict[str, Any]) -> str | None:
        """Why a record is refused, or None if what it claims is proved."""
        try:
            demand(record["format"] == FORMAT, f"format: is not {FORMAT}")
            kind = record["kind"]
            demand(kind in ("manifold", "slope", "summary", "skipped"), f"kind: {kind!r} is unknown")
            if kind == "manifold":
                self._manifold(record)
            elif kind == "slope":
                self._slope(record)
            elif kind == "summary":
                self._summary(record)
        except Refused as refused:
            return str(refused)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError, StopIteration) as error:
            return f"malformed: {type(error).__name__} {error}"
        return None

    def _manifold(self, record: dict[str, Any]) -> None:
        """Oriented, connected, one boundary component of genus two or more, and simple."""
        gluing = decode(record["gluing"])
        for row in gluing:
            for _, p in row:
                odd = sum(p[i] > p[j] for i in range(4) for j in range(i + 1, 4)) % 2
                demand(odd == 1, "gluing: is not oriented")
        Group(gluing)  # connected
        genus = vertices(gluing)[1]
        demand(len(genus) == 1 and genus[0] >= 2, "gluing: the boundary is not one surface of genus two or more")
        demand(record["genus"] == genus[0], "genus: is another one")
        check_angles(gluing, record["angles"], strict=True)
        self._known[record["id"]] = gluing, genus[0]
        self._counts[record["id"]] = Counter()

    def _summary(self, record: dict[str, Any]) -> None:
        """Of the counts; its distances are computed elsewhere, see docs/topology.md."""
        demand(record["verdicts"] == dict(self._counts[record["manifold"]]), "summary: counts other certificates")

    def _slope(self, record: dict[str, Any]) -> None:
        demand(record["manifold"] in self._known, "manifold: no certificate of it came before")
        gluing, genus = self._known[record["manifold"]]
        filled = attach(gluing, record["curve"])
        genera = vertices(filled)[1]
        demand(all(genera), "curve: is not connected, or bounds a disc")
        parts = 2 if record["separating"] else 1
        demand(len(genera) == parts and sum(genera) == genus - (parts == 1), "separating: the boundary says otherwise")
        verdict = record["verdict"]
        demand(verdict in VERDICTS, f"verdict: {verdict!r} is unknown")
        if verdict != "undecided":
            self._proof(record, verdict, filled, genera)
        self._counts[record["manifold"]][verdict] += 1

    def _proof(self, record: dict[str, Any], verdict: str, filled: Gluing, genera: list[int]) -> None:
        filled = replay(filled, zip(*[iter(record["moves"])] * 3, strict=True))
        if "angles" in record:
            demand(verdict in ("simple", "irreducible"), "verdict: angles do not prove it")
            check_angles(filled, record["angles"], strict=verdict == "simple")
            return
        demand(verdict != "simple", "verdict: a group does not prove it")
        group = Group(filled)
        group.play(record["group"])
        if verdict == "irreducible":
            demand(group.indecomposable(), "group: is not seen to be freely indecomposable")
        else:
            demand(group.spare(), "group: no free factor Z is seen")
            # without a sphere that does not separate, a free factor Z comes from a disc
            spheres = group.betti() > sum(genera)
            demand(not spheres or verdict == "splits", "verdict: the factor Z may come from a sphere")


def check_file(path: Path) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """(line, record, why it is refused or None) for every line of a file."""
    checker = Checker()
    with path.open() as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                yield number, {}, f"is no JSON: {error}"
                continue
            ok = isinstance(record, dict)
            yield number, record if ok else {}, checker.check(record) if ok else "is no JSON object"


def main(paths: Sequence[str]) -> int:
    """Check every line of these files; print what is refused and a count."""
    refused = 0
    for path in paths:
        counts: Counter[str] = Counter()
        for number, record, reason in check_file(Path(path)):
            if reason is not None:
                refused += 1
                sys.stdout.write(f"{path}:{number}: refused: {reason}\n")
            else:
                counts[str(record.get("verdict", record["kind"]))] += 1
        told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        sys.stdout.write(f"{path}: holds: {told or 'nothing'}\n")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
