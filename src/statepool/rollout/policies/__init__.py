"""Policies of a rollout, pure objects for live engines and the simulator alike."""

from __future__ import annotations

from collections.abc import Callable

from statepool.core.errors import InvalidConfig
from statepool.rollout.costs import StepTimes
from statepool.rollout.lengths import LengthPrior
from statepool.rollout.policies.auto import Auto
from statepool.rollout.policies.base import Policy
from statepool.rollout.policies.divided import Fcfs, Lrpt, RoundRobin, SeerPaper
from statepool.rollout.policies.oracles import StreamRL, TailIsolate
from statepool.rollout.policies.whole import Partial, VerlGroup, VerlRequest

__all__ = ["NAMES", "ORACLES", "make"]

NAMES = (
    "auto",
    "verl_group",
    "verl_request",
    "partial",
    "divided_rr",
    "divided_fcfs",
    "seer_paper",
    "tail_isolate",
)
"""Policies that know what anybody could know."""
ORACLES = ("streamrl_oracle", "lrpt_oracle")
"""Policies that know the length of every response; for simulations."""


def make(
    name: str,
    chunk: int,
    *,
    seed: int = 0,
    length: Callable[[int], int] | None = None,
    times: StepTimes | None = None,
    prior: LengthPrior | None = None,
    drafts: str | None = None,
) -> Policy:
    """The policy called ``name``.

    Args:
        chunk: tokens of a chunk, where responses are divided.
        seed: of random ties.
        length: true length of a job, for oracles.
        times: of a step, for policies that look ahead.
        prior: of lengths, fitted to an iteration before.
        drafts: where drafts come from, ``group``, ``self`` or nowhere.

    Raises:
        InvalidConfig: an unknown name, a chunk below 1, or an oracle without lengths.
    """
    if chunk < 1:
        raise InvalidConfig(f"chunk must be at least 1, got {chunk}", param="chunk")
    if name in ORACLES:
        if length is None:
            raise InvalidConfig(
                f"policy {name!r} needs to know every length, which only a simulation does", param="policy"
            )
        return StreamRL(length, times or StepTimes(1.0, 0.01)) if name == "streamrl_oracle" else Lrpt(length, chunk)
    makers: dict[str, Callable[[], Policy]] = {
        "auto": lambda: Auto(
            chunk, times=times, prior=prior, drafts=drafts, first="leaders" if drafts and not times else "remaining"
        ),
        "verl_group": VerlGroup,
        "verl_request": lambda: VerlRequest(seed=seed),
        "partial": Partial,
        "divided_rr": lambda: RoundRobin(chunk),
        "divided_fcfs": lambda: Fcfs(chunk),
        "seer_paper": lambda: SeerPaper(chunk),
        "tail_isolate": lambda: TailIsolate(chunk, prior),
    }
    if name not in makers:
        raise InvalidConfig(f"policy must be one of {', '.join((*NAMES, *ORACLES))}, got {name!r}", param="policy")
    return makers[name]()
