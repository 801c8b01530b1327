"""The engines of one server by role: each a process, replaced when it ends or shows no sign of life."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from statepool.cluster import Launcher, LocalLauncher
from statepool.core.errors import StatepoolError, Unavailable
from statepool.engine.config import EngineConfig, ModelInfo
from statepool.serve.config import START_SECONDS
from statepool.serve.engine_client import AsyncEngine
from statepool.serve.messages import ENGINE_FACTORY
from statepool.serve.weights import has_every_tensor

__all__ = ["Role", "Worker", "Workers"]

log = logging.getLogger("statepool.serve")

Role = Literal["prefill", "decode", "mixed"]

_LOOK_SECONDS = 0.1
_AGAIN_SECONDS = 1.0


@dataclass(slots=True)
class Worker:
    """One seat, and the engine in it now."""

    number: int
    role: Role
    engine: AsyncEngine
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    replaced: int = 0
    renewed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever another engine has taken the seat."""
    draining: bool = False
    """It gets no request any more."""

    @property
    def usable(self) -> bool:
        """Whether it takes requests now."""
        return self.ready.is_set() and not self.draining and self.engine.failure is None


class Workers:
    """All engines of one server.

    Args:
        roles: one per engine.
        configs: one per engine.
        max_in_flight: sequences each may have.
        stall_seconds: silence after which an engine is replaced.
        factory: what makes an engine.
        launcher: who starts their processes; by default this machine does.
        start_seconds: time an engine has to load.
    """

    def __init__(
        self,
        roles: list[Role],
        configs: Sequence[EngineConfig],
        max_in_flight: int,
        stall_seconds: float,
        factory: str = ENGINE_FACTORY,
        launcher: Launcher | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.configs = configs
        self.on_queue_seconds: Callable[[float], None] | None = None
        self.on_loss: Callable[[int], None] | None = None
        """Called with the number of an engine that has ended."""
        self._max_in_flight = max_in_flight
        self._stall_seconds = stall_seconds
        self._factory = factory
        self._start_seconds = start_seconds
        self._launcher = LocalLauncher() if launcher is None else launcher
        self.all = [Worker(i, role, self._engine()) for i, role in enumerate(roles)]
        self._info: ModelInfo | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._ordering = asyncio.Lock()
        self._updates: dict[str, dict[str, Any]] = {}  # of weights, by folder, in the order they came
        self._paused = False

    async def start(self) -> None:
        """Spawn every engine; ``wait_ready`` waits for them."""
        starts = (worker.engine.start(self.configs[worker.number], factory=self._factory) for worker in self.all)
        await asyncio.gather(*starts)

    async def wait_ready(self) -> ModelInfo:
        """What is being served, once every engine has loaded it.

        Raises:
            StatepoolError: one could not be built. Unavailable: one hung, or took longer than it may.
        """
        if self._info is None:
            infos = await asyncio.gather(*(worker.engine.wait_ready() for worker in self.all))
            if self._info is None:  # nobody else came first
                self._info = infos[0]
                for worker in self.all:
                    worker.ready.set()
                    worker.engine.on_queue_seconds = self._queued
                    self._keepers.append(asyncio.create_task(self._keep(worker)))
        return self._info

    async def close(self) -> None:
        """Stop all."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(worker.engine.close() for worker in self.all))

    def of(self, *roles: Role) -> list[Worker]:
        """Usable engines of these roles."""
        return [worker for worker in self.all if worker.role in roles and worker.usable]

    async def restart(self, worker: Worker, drain_seconds: float) -> None:
        """Give a seat a new engine: no new requests, time for those that run, then the rest goes on elsewhere.

        Raises:
            Unavailable: it is being replaced already.
        """
        if worker.draining or not worker.ready.is_set():
            raise Unavailable(f"engine {worker.number} is being replaced already")
        worker.draining = True
        worker.renewed.clear()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.engine.idle(), drain_seconds)
            worker.engine.kill()
            await worker.renewed.wait()
        finally:
            worker.draining = False

    async def order(self, method: str, **arguments: Any) -> Any:
        """Run ``pause``, ``resume`` or ``update_weights`` on every engine; whoever takes a seat later is told too.

        Raises:
            StatepoolError: what an engine raised. Unavailable: every engine is gone.
        """
        async with self._ordering:
            usable = [worker.engine for worker in self.all if worker.usable]
            if not usable:
                raise nobody("")
            calls = (engine.call(method, **arguments) for engine in usable)
            answers = await asyncio.gather(*calls, return_exceptions=True)
            errors = [answer for answer in answers if isinstance(answer, BaseException)]
            # One that has ended meanwhile is replaced, and its successor told.
            refusals = [error for error in errors if not isinstance(error, Unavailable)]
            if refusals or len(errors) == len(answers):
                raise (refusals or errors)[0]
            if method == "update_weights":
                folder = arguments["path"]
                if await asyncio.to_thread(has_every_tensor, folder, self.info.path):
                    self._updates.clear()
                self._updates.pop(folder, None)
                self._updates[folder] = arguments
            else:
                self._paused = method == "pause"
            return next(answer for answer in answers if not isinstance(answer, BaseException))

    @property
    def info(self) -> ModelInfo:
        """What is being served."""
        assert self._info is not None, "wait_ready() comes first"
        return self._info

    def _queued(self, seconds: float) -> None:
        if self.on_queue_seconds is not None:
            self.on_queue_seconds(seconds)

    async def _keep(self, worker: Worker) -> None:
        """Replace the engine of one seat for as long as the server runs."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            engine = worker.engine
            silent = engine.silent_seconds
            if engine.failure is None and silent < self._stall_seconds:
                continue
            why = engine.failure or f"no sign of life for {silent:.1f} s"
            log.warning("%s engine %d is replaced: %s", worker.role, worker.number, why)
            worker.ready.clear()
            engine.kill()
            await engine.close()
            if self.on_loss is not None:
                self.on_loss(worker.number)
            await self._replace(worker)

    async def _replace(self, worker: Worker) -> None:
        """Put an engine into the seat that has been told what the others have."""
        while True:
            engine = self._engine()
            try:
                await engine.start(self.configs[worker.number], factory=self._factory)
                await engine.wait_ready()
                async with self._ordering:
                    for arguments in self._updates.values():
                        await engine.call("update_weights", **arguments)
                    if self._paused:
                        await engine.call("pause")
                    engine.on_queue_seconds = self._queued
                    worker.engine = engine
                    worker.replaced += 1
                    worker.ready.set()
                    worker.renewed.set()
            except StatepoolError as error:
                log.error("%s engine %d does not start: %s", worker.role, worker.number, error.message)
                await engine.close()
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            except BaseException:
                await engine.close()
                raise
            return

    def _engine(self) -> AsyncEngine:
        return AsyncEngine(self._max_in_flight, self._launcher, self._start_seconds)


def nobody(role: str) -> Unavailable:
    """The error where no engine of a role runs."""
    return Unavailable(f"no {role} engine runs at the moment; retry later")
