"""What SnapPy says about a manifold whose boundary is tori: a volume, and names. A second opinion, never a proof."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from statepool.tasks.topology.errors import OutOfTime
from statepool.tasks.topology.manifold import Skeleton, to_regina
from statepool.tasks.topology.watch import in_time

__all__ = ["names"]


def names(gluing: Sequence[int], seconds: float = 30.0) -> dict[str, Any]:
    """``solution`` (SnapPy's word for it), ``volume`` (floating point) and ``names``; why not, if it cannot be asked.

    An empty list of names says nothing: SnapPy's censuses hold hyperbolic manifolds only.
    """
    if find_spec("snappy") is None:
        return {"snappy": "is not installed; pip install 'statepool[names]'"}
    if any(Skeleton.of(gluing).euler):
        return {"snappy": "takes boundaries that are all tori"}
    try:
        found: dict[str, Any] = in_time(_ask, tuple(gluing), seconds=seconds)
    except OutOfTime as error:
        return {"snappy": error.message}
    return found


def _ask(gluing: tuple[int, ...]) -> dict[str, Any]:
    import snappy

    made = snappy.Manifold(to_regina(gluing).snapPea())
    return {
        "solution": made.solution_type(),
        "volume": float(made.volume()),
        "names": [str(other) for other in made.identify()],
    }
