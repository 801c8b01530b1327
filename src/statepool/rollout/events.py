"""The words between the scheduler and whoever runs its decisions, a live driver or the simulator: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Abort",
    "ChunkDone",
    "Decision",
    "Dispatch",
    "Draft",
    "Event",
    "Finished",
    "Free",
    "InstanceJoined",
    "InstanceLost",
    "Progress",
    "Submit",
    "ToolReturn",
    "ToolWait",
]


@dataclass(frozen=True, slots=True)
class Submit:
    """A response is wanted. ``job`` numbers count from 0 in order of submission.

    Args:
        group: number of its group.
        index: of the member in the group.
        prompt: tokens of the prompt.
        limit: most tokens of the response.
        generated: tokens it has already, when an iteration is resumed.
    """

    job: int
    group: int
    index: int
    prompt: int
    limit: int
    generated: int = 0


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """A chunk has ended; the response has ``generated`` tokens and its KV is in the pool."""

    job: int
    generated: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A response is complete."""

    job: int
    generated: int


@dataclass(frozen=True, slots=True)
class ToolWait:
    """The same as ``ChunkDone``, but the response waits for a tool and must not be placed until ``ToolReturn``."""

    job: int
    generated: int


@dataclass(frozen=True, slots=True)
class ToolReturn:
    """A tool has answered with ``tokens`` tokens, which lengthen what is to be computed."""

    job: int
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """A running response has ``generated`` tokens by now."""

    job: int
    generated: int


@dataclass(frozen=True, slots=True)
class InstanceLost:
    """An engine is gone, and the KV of what ran there. ``generated`` tokens of each of its jobs are known."""

    instance: int
    generated: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class InstanceJoined:
    """An engine takes work: ``capacity`` tokens of KV, at most ``seats`` sequences at once."""

    instance: int
    capacity: int
    seats: int


Event: TypeAlias = Submit | ChunkDone | Finished | ToolWait | ToolReturn | Progress | InstanceLost | InstanceJoined


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run ``job`` on ``instance`` until it has gained ``tokens``. Its KV lies at ``source``; None: it has none yet."""

    job: int
    instance: int
    tokens: int
    source: int | None


@dataclass(frozen=True, slots=True)
class Draft:
    """From now on ``instance`` verifies up to ``probe`` draft tokens for probes, ``rest`` for others, on ``paths``."""

    instance: int
    probe: int
    rest: int
    paths: int


@dataclass(frozen=True, slots=True)
class Free:
    """Nobody will need the KV of ``job`` again: give it back at once."""

    job: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop ``job``, which runs on ``instance``; its response is not wanted in this iteration."""

    job: int
    instance: int


Decision: TypeAlias = Dispatch | Draft | Free | Abort
