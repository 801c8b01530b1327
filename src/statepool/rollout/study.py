"""A simulated iteration as the command line asks for it: a published workload or a recorded trace, and one policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidConfig
from statepool.rollout.costs import MOONLIGHT, QWEN_VL, StepTimes
from statepool.rollout.des import Outcome, Simulation, Wanted
from statepool.rollout.groups import ChunkRecord
from statepool.rollout.lengths import LengthPrior
from statepool.rollout.policies import make
from statepool.rollout.sd import Source, Speculation
from statepool.rollout.trace import EventLog, read_lengths
from statepool.rollout.workloads import draw

__all__ = ["Result", "Study", "by_group", "simulated"]

_WORKLOADS = {each.name: each for each in (QWEN_VL, MOONLIGHT)}


@dataclass(frozen=True, slots=True)
class Study:
    """What to simulate; see ``statepool rollout sim --help``."""

    policy: str
    trace: Path | None = None
    workload: str | None = None
    instances: int | None = None
    kv: int | None = None
    seats: int = 256
    batched: int | None = None
    chunk: int = 512
    drafts: Source | None = None
    profile: Path | None = None
    correlation: float = 0.65
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("instances", "kv", "seats", "batched", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {value}", param=name)


@dataclass(frozen=True, slots=True)
class Result:
    """An outcome and what was wanted."""

    outcome: Outcome
    wanted: list[Wanted]

    @property
    def throughput(self) -> float:
        """Output tokens per second."""
        return self.outcome.throughput

    def bars(self) -> Iterator[tuple[int, list[ChunkRecord]]]:
        """The group of every response, and its chunks."""
        return ((want.group, chunks) for want, chunks in zip(self.wanted, self.outcome.chunks, strict=True))

    def as_json(self) -> dict[str, Any]:
        """The figures."""
        out = self.outcome
        return {
            "responses": len(out.ends),
            "tokens": out.tokens,
            "seconds": out.seconds,
            "tokens_per_s": out.throughput,
            "tail_s": out.tail,
            "preemptions": out.preemptions,
            "recomputed": out.recomputed,
            "moved": out.moved,
            "decisions": out.decisions,
        }

    def text(self) -> str:
        """For people."""
        out = self.outcome
        return (
            f"{len(out.ends)} responses, {out.tokens} tokens in {out.seconds:.1f} s: {out.throughput:.0f} tokens/s, "
            f"the last tenth took {out.tail:.1f} s ({out.tail / out.seconds:.0%})\n"
            f"{out.decisions} chunks, {out.preemptions} preemptions, {out.recomputed} tokens computed again, "
            f"{out.moved} tokens of KV moved"
        )


def by_group(wanted: list[Wanted]) -> list[list[int]]:
    """Lengths of each group."""
    groups: dict[int, list[int]] = {}
    for want in wanted:
        groups.setdefault(want.group, []).append(want.length)
    return list(groups.values())


def simulated(study: Study, events: Path | None = None) -> tuple[Result, int]:
    """Run it; the result and how many instances there were. ``events`` gets what replay needs.

    Raises:
        InvalidConfig: a setting out of range, a trace without step times, events of a policy that cannot be replayed.
        InvalidRequest: the trace cannot be read.
    """
    workload = _WORKLOADS[study.workload] if study.workload else None
    prior = None
    if workload is not None:
        wanted = draw(workload, study.correlation, study.seed)
        prior = LengthPrior.fit(by_group(draw(workload, study.correlation, study.seed + 1_000_003)))
    else:
        assert study.trace is not None
        lines = read_lengths(study.trace)
        names = {name: number for number, name in enumerate(dict.fromkeys(line.group for line in lines))}
        wanted = [Wanted(names[each.group], each.idx, each.prompt_len, each.max_len, each.out_len) for each in lines]
    times = _times(study.profile) if study.profile else workload.times if workload else None
    if times is None:
        raise InvalidConfig("a trace needs --profile, the step times of its engines", param="profile")
    policy = make(
        study.policy,
        study.chunk,
        seed=study.seed,
        length=lambda job: wanted[job].length,
        times=times if events is None else None,
        prior=prior if events is None else None,
        drafts=study.drafts,
    )
    instances = study.instances or (workload.instances if workload else 2)
    capacity = study.kv or (workload.capacity if workload else 1_000_000)
    speculation = Speculation(times, study.drafts) if study.drafts else None
    settings: dict[str, Any] = {
        "instances": instances,
        "capacity": capacity,
        "seats": study.seats,
        "batched": study.batched,
    }
    if events is None:
        outcome = Simulation(wanted, policy, times, speculation=speculation, **settings).run()
    else:
        if study.policy.endswith("oracle"):
            raise InvalidConfig("events of an oracle cannot be replayed: they lack the lengths", param="events")
        header = {
            "policy": study.policy, "chunk": study.chunk, "seed": study.seed, "drafts": study.drafts, "block": 1,
        }  # fmt: skip
        with events.open("w") as file:
            record = EventLog(file, header)
            outcome = Simulation(wanted, policy, times, speculation=speculation, record=record, **settings).run()
    return Result(outcome, wanted), instances


def _times(path: Path) -> StepTimes:
    try:
        found = json.loads(path.read_text())
        table = tuple((int(rows), float(seconds)) for rows, seconds in found.get("table", ()))
        return StepTimes(float(found["base"]), float(found["row"]), float(found.get("context", 0.0)), table)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidConfig(f"{path} is no profile of statepool rollout calibrate: {error}", param="profile") from None
