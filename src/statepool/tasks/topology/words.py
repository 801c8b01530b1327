"""Find out whether a fundamental group is a free product: a short presentation, with the steps that lead to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from statepool.tasks.topology.checker import Group, shorter
from statepool.tasks.topology.spine import decode

__all__ = ["Trail", "judge"]

Trail = list[list[Any]]
"""Steps of :class:`~statepool.tasks.topology.checker.Group`."""

_LONGEST = 4000
_MOST = 5
"""Generators up to which Whitehead automorphisms are tried: there are 2n (4^(n-1) - 1)."""


def judge(gluing: Sequence[int]) -> tuple[str, Trail, int] | None:
    """("Z" or "indecomposable", the steps that show it, first Betti number), or None if neither is seen.

    "Z" says that the group is Z * something; "indecomposable" that it is no free product and not Z.
    """
    group, trail = Group(decode(gluing)), []

    def take(*step: Any) -> None:
        trail.append(list(step))
        group.play([step])

    while True:
        while (found := _once(group)) is not None:
            take("solve", *found)
        if sum(map(len, group.relators)) > _LONGEST:
            return None
        if group.spare():
            return "Z", trail, group.betti()
        turned = False
        if len(group.generators) <= _MOST:
            while (best := shorter(group.relators, sorted(group.generators))) is not None:
                take("turn", best[0], list(best[1]))
                turned = True
            if group.spare():
                return "Z", trail, group.betti()
        if _once(group) is not None:
            continue
        step = _overlap(group)
        if step is not None:
            take("multiply", *step)
        elif not turned:
            break
    return ("indecomposable", trail, group.betti()) if group.indecomposable() else None


def _once(group: Group) -> tuple[int, int] | None:
    """A relator and a generator that it holds once, chosen so that the relators grow least; None if there is none.

    The last relator of a group is kept once every generator is in it: it says more than the free group it would leave.
    """
    best: tuple[int, int, int] | None = None
    for index, word in enumerate(group.relators):
        letters = [abs(x) for x in word]
        for generator in set(letters):
            if letters.count(generator) == 1:
                elsewhere = sum(abs(x) == generator for other in group.relators for x in other) - 1
                growth = elsewhere * (len(word) - 2) - len(word)
                if best is None or growth < best[0]:
                    best = growth, index, generator
    return None if best is None else best[1:]


def _overlap(group: Group) -> tuple[int, int, int, int, int] | None:
    """A product of two relators that is shorter than the first: they share more than half of the second."""
    for index, one in enumerate(group.relators):
        for by, two in enumerate(group.relators):
            if by == index or len(two) > len(one):
                continue
            half = len(two) // 2 + 1
            for sign in (1, -1):
                # the part that cancels is the inverse of a piece of the relator
                read = two if sign > 0 else [-x for x in reversed(two)]
                double, long = read + read, one + one
                for at in range(len(two)):
                    piece = [-x for x in reversed(double[at : at + half])]
                    for start in range(len(one)):
                        if long[start : start + half] == piece and half <= len(one):
                            return index, by, (start + half) % len(one), at, sign
    return None
