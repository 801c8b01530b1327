"""Where chunks run: engines of this process, one step of each in turn. ``fleet`` has the same face over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.config import EngineStats, ModelInfo
from statepool.kv.layout import BLOCK_SIZE
from statepool.rollout.instance import Drafts, Gain, Instance, MemoryStates, StatePool, Task

__all__ = ["Hosts", "Joined", "LocalHosts", "Lost", "Seat"]


@dataclass(frozen=True, slots=True)
class Seat:
    """What an engine can hold: tokens of KV, and sequences in one step."""

    capacity: int
    seats: int
    context: int = 1 << 62
    """Most tokens of one sequence, prompt included."""


@dataclass(frozen=True, slots=True)
class Lost:
    """An engine is gone with everything that ran on it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """An engine takes work from now on."""

    seat: Seat


Notice: TypeAlias = "Gain | Lost | Joined"


class Hosts(Protocol):
    """Engines by number."""

    drafts: str | None
    """Where drafts come from, ``group`` or ``self``; None: none are made."""

    def seats(self) -> list[Seat]:
        """What each engine can hold."""
        ...

    def info(self) -> ModelInfo:
        """What they serve."""
        ...

    def version(self) -> str:
        """Of the weights; one for all."""
        ...

    def begin(self, iteration: str) -> None:
        """A new iteration: forget jobs and texts of the one before."""
        ...

    def start(self, number: int, task: Task, source: int | None) -> None:
        """Begin a chunk; the job's KV is at ``source``, if it has any."""
        ...

    def abort(self, number: int, name: str) -> None:
        """Drop a job."""
        ...

    def forget(self, number: int, name: str) -> None:
        """Nobody will go on with a job that rests on an engine."""
        ...

    def draft(self, number: int, probe: int, rest: int, paths: int) -> None:
        """Choose draft lengths of an engine."""
        ...

    def poll(self, seconds: float) -> list[tuple[int, Notice]]:
        """Let engines work and tell what came of it; waits up to ``seconds`` if nothing comes."""
        ...

    def stats(self) -> list[EngineStats]:
        """Counters of each engine."""
        ...

    def refilled(self) -> int:
        """Output tokens whose KV was lost and had to be computed again, so far."""
        ...

    def update_weights(self, tensors: Iterable[tuple[str, npt.NDArray[Any]]], version: str) -> None:
        """New weights for all engines, between two iterations."""
        ...


class LocalHosts:
    """Engines of this process.

    Args:
        engines: with equal weights.
        states: where KV waits between chunks.
        drafts: makes what drafts for an engine, by its number.
        capacity: tokens of KV to use on each engine; None: all of it.

    Raises:
        InvalidConfig: no engine, or engines with different weights.
    """

    def __init__(
        self,
        engines: Sequence[Any],
        *,
        states: StatePool | None = None,
        drafts: Callable[[int], Drafts] | None = None,
        capacity: int | None = None,
    ) -> None:
        if not engines:
            raise InvalidConfig("a rollout needs at least one engine", param="engines")
        if len({(engine.info.fingerprint, engine.info.quant, engine.version) for engine in engines}) > 1:
            raise InvalidConfig("the engines of a rollout must have the same weights", param="engines")
        self.engines = list(engines)
        self.states = states or MemoryStates()
        self.instances = [
            Instance(engine, self.states, drafts=drafts(number) if drafts else None)
            for number, engine in enumerate(engines)
        ]
        self._capacity = capacity
        self.drafts = getattr(self.instances[0].drafting, "source", None)
        self._refused: list[tuple[int, Gain]] = []

    def seats(self) -> list[Seat]:
        """See ``Hosts.seats``."""
        found = []
        for engine in self.engines:
            all_of_it = engine.pool.total * BLOCK_SIZE
            capacity = min(self._capacity or all_of_it, all_of_it)
            found.append(Seat(capacity, engine.config.max_seqs, engine.info.max_model_len))
        return found

    def info(self) -> ModelInfo:
        """See ``Hosts.info``."""
        found: ModelInfo = self.engines[0].info
        return found

    def version(self) -> str:
        """See ``Hosts.version``."""
        return str(self.engines[0].version)

    def begin(self, iteration: str) -> None:
        """See ``Hosts.begin``."""
        for instance in self.instances:
            instance.begin(iteration)

    def start(self, number: int, task: Task, source: int | None) -> None:
        """See ``Hosts.start``."""
        if source is not None and source != number:
            self.instances[source].release(task.request.id)
        refused = self.instances[number].start(task)
        if refused is not None:
            self._refused.append((number, refused))

    def abort(self, number: int, name: str) -> None:
        """See ``Hosts.abort``."""
        self.instances[number].abort(name)

    def forget(self, number: int, name: str) -> None:
        """See ``Hosts.forget``."""
        self.instances[number].abort(name)

    def draft(self, number: int, probe: int, rest: int, paths: int) -> None:
        """See ``Hosts.draft``."""
        self.instances[number].draft(probe, rest, paths)

    def poll(self, seconds: float) -> list[tuple[int, Notice]]:
        """See ``Hosts.poll``; engines of this process work in it, so it never waits."""
        del seconds
        found: list[tuple[int, Notice]] = list(self._refused)
        self._refused.clear()
        for number, instance in enumerate(self.instances):
            if instance.busy:
                found += [(number, gain) for gain in instance.step()]
        return found

    def stats(self) -> list[EngineStats]:
        """See ``Hosts.stats``."""
        return [engine.stats() for engine in self.engines]

    def refilled(self) -> int:
        """See ``Hosts.refilled``."""
        return sum(instance.refilled for instance in self.instances)

    def update_weights(self, tensors: Iterable[tuple[str, npt.NDArray[Any]]], version: str) -> None:
        """See ``Hosts.update_weights``.

        Raises:
            InvalidRequest: an iteration is under way.
        """
        if any(instance.busy for instance in self.instances):
            raise InvalidRequest("weights change between two iterations, and one is under way", param="version")
        values = list(tensors)
        for engine in self.engines:
            engine.update_weights(values, version)
