"""Policies of a rollout, pure objects for live engines and the simulator alike."""

from __future__ import annotations

from collections.abc import Callable

from statepool.core.errors import InvalidConfig
from statepool.rollout.policies.base import Policy
from statepool.rollout.policies.divided import Fcfs, Lrpt, RoundRobin, SeerPaper
from statepool.rollout.policies.whole import VerlGroup, VerlRequest

__all__ = ["NAMES", "ORACLES", "make"]

NAMES = ("verl_group", "verl_request", "divided_rr", "divided_fcfs", "seer_paper")
"""Policies that know what anybody could know."""
ORACLES = ("lrpt_oracle",)
"""Policies that know the length of every response; for simulations."""


def make(name: str, chunk: int, *, seed: int = 0, length: Callable[[int], int] | None = None) -> Policy:
    """The policy called ``name``.

    Args:
        chunk: tokens of a chunk, where responses are divided.
        seed: of random ties.
        length: true length of a job, for oracles.

    Raises:
        InvalidConfig: an unknown name, a chunk below 1, or an oracle without lengths.
    """
    if chunk < 1:
        raise InvalidConfig(f"chunk must be at least 1, got {chunk}", param="chunk")
    if name in ORACLES and length is None:
        raise InvalidConfig(f"policy {name!r} needs to know every length, which only a simulation does", param="policy")
    match name:
        case "verl_group":
            return VerlGroup()
        case "verl_request":
            return VerlRequest(seed=seed)
        case "divided_rr":
            return RoundRobin(chunk)
        case "divided_fcfs":
            return Fcfs(chunk)
        case "seer_paper":
            return SeerPaper(chunk)
        case "lrpt_oracle":
            assert length is not None
            return Lrpt(length, chunk)
    raise InvalidConfig(f"policy must be one of {', '.join((*NAMES, *ORACLES))}, got {name!r}", param="policy")
