"""The policies by the names they have on the command line."""

from __future__ import annotations

import math
from collections.abc import Callable

from statepool.core.errors import InvalidConfig
from statepool.serve.conductor import CacheCentric, Conductor
from statepool.serve.costs import NodeCosts
from statepool.serve.dispatch import KvRouter, LeastLoad, RandomNode, RoundRobin
from statepool.serve.overload import CheckBoth, EarlyPredicted, EarlyRejection, Everyone, Foresight, LateCheck, Patience
from statepool.serve.sizeaware import SizeAware
from statepool.serve.snapshot import SLO, Admission, Placement

__all__ = ["ADMISSIONS", "PLACEMENTS", "conductor"]

PLACEMENTS: dict[str, Callable[[NodeCosts, int], Placement]] = {
    "random": RandomNode,
    "round-robin": lambda costs, _: RoundRobin(costs),
    "least-load": lambda costs, _: LeastLoad(costs),
    "local": lambda costs, _: CacheCentric(costs, threshold=math.inf),
    "global": lambda costs, _: CacheCentric(costs),
    "kv-router": lambda costs, _: KvRouter(costs),
    "size-aware": lambda costs, _: SizeAware(costs, inline=False, layers_at_once=2),
    "size-aware-inline": lambda costs, _: SizeAware(costs),
}

ADMISSIONS: dict[str, Callable[[NodeCosts, SLO], Admission]] = {
    "none": lambda *_: Everyone(),
    "late": LateCheck,
    "both": CheckBoth,
    "early": EarlyRejection,
    "predicted": EarlyPredicted,
    "foresight": Foresight,
    "patience": Patience,
}


def conductor(placement: str, admission: str, costs: NodeCosts, slo: SLO, seed: int = 0) -> Conductor:
    """The conductor with policies of these names.

    Raises:
        InvalidConfig: there is no such policy.
    """
    if placement not in PLACEMENTS:
        raise InvalidConfig(f"policy is {placement!r}; known are {', '.join(PLACEMENTS)}", param="policy")
    if admission not in ADMISSIONS:
        raise InvalidConfig(f"admission is {admission!r}; known are {', '.join(ADMISSIONS)}", param="admission")
    return Conductor(PLACEMENTS[placement](costs, seed), ADMISSIONS[admission](costs, slo))
