"""The words between a fleet and its engine processes. One codec for each direction."""

from __future__ import annotations

from typing import Any

import msgspec

from statepool.core.wire import Codec
from statepool.engine.config import EngineConfig, EngineStats, ModelInfo
from statepool.rollout.instance import Gain, Task
from statepool.serve.messages import Problem

__all__ = ["from_worker", "to_worker"]


class Build(msgspec.Struct, frozen=True, tag=True):
    """First message: make this engine."""

    config: EngineConfig
    states: str | None
    """Folder of the states between chunks, which engines of one machine share; None: messages carry them."""
    states_bytes: int
    report_every: int
    drafts: str = "off"
    """``off``, ``self`` or ``group``."""
    server: str | None = None
    """Address of the draft server."""
    fetch_every: int = 8
    paths: int = 1
    cost: tuple[float, float, float] = (1e-4, 3e-5, 1e-5)
    """Of a step: see ``budget.StepCost``."""
    core: int | None = None
    """The one processor core to run on."""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """A new iteration."""

    iteration: str


class Run(msgspec.Struct, frozen=True, tag=True):
    """Begin a chunk."""

    task: Task
    state: bytes | None = None
    """Its KV, from an engine on another machine."""


class Release(msgspec.Struct, frozen=True, tag=True):
    """Give the KV of a parked job to the state pool; answered by Released."""

    id: str


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Forget a job."""

    id: str


class Lengths(msgspec.Struct, frozen=True, tag=True):
    """Draft lengths from now on."""

    probe: int
    rest: int
    paths: int


class Weights(msgspec.Struct, frozen=True, tag=True):
    """New weights; answered by Counters, or by Failed."""

    tensors: dict[str, Any]
    version: str


class Count(msgspec.Struct, frozen=True, tag=True):
    """Answered by Counters."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Leave."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine is loaded."""

    info: ModelInfo
    blocks: int


class Gains(msgspec.Struct, frozen=True, tag=True):
    """What jobs have gained in a step."""

    gains: list[Gain]


class Released(msgspec.Struct, frozen=True, tag=True):
    """The KV of a job is where another engine finds it."""

    id: str
    state: bytes | None = None
    """That KV, where engines share no folder."""


class Counters(msgspec.Struct, frozen=True, tag=True):
    """Counters of the engine now."""

    stats: EngineStats
    refilled: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """What was asked for did not work."""

    problem: Problem


ToWorker = Build | Begin | Run | Release | Drop | Lengths | Weights | Count | Stop
FromWorker = Ready | Gains | Released | Counters | Failed

to_worker: Codec[ToWorker] = Codec(ToWorker)
from_worker: Codec[FromWorker] = Codec(FromWorker)
