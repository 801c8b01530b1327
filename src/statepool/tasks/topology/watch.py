"""The theorem watch: what would contradict a proved bound is made small and looked at again in three other ways.

Two boundary-reducing separating slopes on a genus g boundary of a simple manifold are at distance at most 8 (Lou and
Zhang, 1810.09649), and for g = 2 there is at most one (Li, Qiu and Zhang). A breach is a mistake of this program until
the three ways agree.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
from collections.abc import Callable, Sequence
from typing import Any

import mpmath

from statepool.tasks.topology.boundary import Boundary, Slope
from statepool.tasks.topology.checker import Checker
from statepool.tasks.topology.errors import OutOfTime
from statepool.tasks.topology.handles import attach_2handle, certify, decide, manifold_record, record_of
from statepool.tasks.topology.manifold import to_regina
from statepool.tasks.topology.metric import Metric, crossings, walk

__all__ = ["breach", "compresses", "double_is_irreducible", "in_time", "other_distance"]


def breach(isosig: str, boundary: Boundary, pair: tuple[Slope, Slope], distance: int, *, seconds: float = 60.0) -> str:
    """A breach as JSON: the smallest representatives, what each of the three ways says, and whether all confirm it."""
    small = [min((slope, boundary.slope(list(slope.key))), key=lambda s: sum(s.weights)) for slope in pair]
    again = other_distance(boundary, small[0], small[1])
    checked = [_checked(boundary, slope) for slope in small]
    discs = [compresses(attach_2handle(boundary, slope), seconds) for slope in small]
    confirmed = again == distance and checked == ["boundary-reducible"] * 2 and discs == [True, True]
    told = {
        "isosig": isosig,
        "slopes": [list(slope.weights) for slope in small],
        "distance": distance,
        "distance_in_another_metric": again,
        "checker": checked,
        "regina_finds_a_disc": discs,
        "confirmed": confirmed,
    }
    return json.dumps(told)


def _checked(boundary: Boundary, slope: Slope) -> str:
    """Another certificate, from another seed, through the independent checker."""
    angles = certify(boundary.manifold)
    if angles is None:
        return "the manifold is not certified simple"
    checker = Checker()
    checker.check(manifold_record(boundary.manifold, angles))
    decision = decide(boundary, slope, seed=1)
    return checker.check(record_of(boundary, slope, decision)) or decision.verdict


def other_distance(boundary: Boundary, one: Slope, two: Slope, salt: int = 1) -> int:
    """The distance in another metric, by mpmath alone."""
    metric = Metric(boundary.across, boundary.edge, salt)
    walked = []
    for slope in (one, two):
        entry, right = boundary.surface.path(list(slope.weights))
        walked.append(walk(metric, entry, right))
    with mpmath.workdps(15):
        return crossings(*walked)


def compresses(gluing: Sequence[int], seconds: float = 60.0) -> bool | None:
    """Whether Regina's normal surfaces find an essential disc; None if it was not done in time."""
    return _asked(_regina_disc, gluing, seconds)


def _regina_disc(gluing: tuple[int, ...]) -> bool:
    made = to_regina(gluing)
    made.truncateIdeal()
    made.simplify()
    return bool(made.hasCompressingDisc())


def double_is_irreducible(gluing: Sequence[int], seconds: float = 60.0) -> bool | None:
    """Whether Regina finds the double over the boundary irreducible; None if it was not done in time.

    The double is irreducible if and only if the manifold is irreducible and boundary-irreducible. There is no
    certificate for the answer, and beyond about 27 tetrahedra of the double it takes minutes.
    """
    return _asked(_regina_double, gluing, seconds)


def _regina_double(gluing: tuple[int, ...]) -> bool:
    made = to_regina(gluing)
    made.truncateIdeal()
    made.simplify()
    double = made.doubleOverBoundary()
    double.simplify()
    return bool(double.isIrreducible())


def _asked(question: Callable[[tuple[int, ...]], bool], gluing: Sequence[int], seconds: float) -> bool | None:
    try:
        return bool(in_time(question, tuple(gluing), seconds=seconds))
    except OutOfTime:
        return None


def in_time(work: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """Run a call that cannot be interrupted in a process of its own, and end that in time.

    Raises:
        OutOfTime: It took longer, or its process died.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_answer, args=(answers, work, arguments), daemon=True)
    process.start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        raise OutOfTime(f"{work.__name__.strip('_')}: took longer than {seconds:g} s") from None
    finally:
        process.kill()
        process.join()
        answers.close()


def _answer(answers: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    answers.put(work(*arguments))
