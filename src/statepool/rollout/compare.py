"""Policies side by side on live engines: the same groups, seeds and engines, all in turn, medians."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from statepool.core.errors import InvalidConfig, StatepoolError
from statepool.engine.config import EngineConfig
from statepool.rollout.config import RolloutConfig
from statepool.rollout.fleet import Fleet
from statepool.rollout.groups import Group
from statepool.rollout.live import rollout
from statepool.rollout.policies import NAMES
from statepool.rollout.report import Summary, summary
from statepool.tasks.base import Problem, Task

__all__ = ["Arm", "compare"]


@dataclass(slots=True)
class Arm:
    """One policy with its drafts, and what its rounds gave."""

    policy: str
    drafts: str
    speeds: list[float] = field(default_factory=list)
    rounds: list[Summary] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As it is asked for."""
        return self.policy if self.drafts == "off" else f"{self.policy}/{self.drafts}"

    @property
    def median(self) -> float:
        """Tokens per second."""
        return statistics.median(self.speeds)

    @property
    def last(self) -> Summary:
        """Figures of the last round."""
        return self.rounds[-1]

    def as_json(self) -> dict[str, Any]:
        """Name, speeds and the figures of the last round."""
        return {"name": self.name, "median": self.median, "speeds": self.speeds, **self.last.as_json()}


def compare(
    config: RolloutConfig,
    engine: EngineConfig,
    groups: Sequence[Group],
    problems: Mapping[str, Problem],
    tasks: Mapping[str, Task],
    against: Sequence[str],
    rounds: int,
) -> list[Arm]:
    """The policy and drafts of ``config`` first, then ``against`` (``policy`` or ``policy/drafts``).

    Raises:
        InvalidConfig: an unknown policy or source of drafts, or rounds below 1.
        StatepoolError: two arms gave different tokens.
    """
    if rounds < 1:
        raise InvalidConfig(f"rounds must be at least 1, got {rounds}", param="rounds")
    arms = [Arm(config.policy, config.drafts)]
    for each in against:
        policy, _, drafts = each.strip().partition("/")
        if policy not in NAMES or drafts not in ("", "self", "group"):
            raise InvalidConfig(f"against: {each!r} is no policy of {', '.join(NAMES)}", param="against")
        arms.append(Arm(policy, drafts or "off"))
    tokens: list[tuple[int, ...]] | None = None
    with ExitStack() as stack:
        fleets = {
            drafts: stack.enter_context(Fleet(engine, config.engines, ray=config.ray, drafts=drafts, pin=config.pin))
            for drafts in {arm.drafts for arm in arms}
        }
        for _ in range(rounds):
            for arm in arms:
                fleet = fleets[arm.drafts]
                done = rollout(fleet, groups, policy=arm.policy, chunk=config.chunk, seed=config.seed)
                arm.speeds.append(done.tokens / done.seconds)
                arm.rounds.append(summary(done, problems, tasks))
                said = [response.tokens for response in done.responses]
                if arm.policy != "partial" and said != (tokens := tokens or said):
                    raise StatepoolError(f"{arm.name} gave other tokens than {arms[0].name}")
    return arms
