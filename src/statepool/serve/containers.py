"""Containers of the code interpreter: a sandbox each, kept by id from call to call until nobody has used it for long.

The server runs a pool of sandboxes of its own. Without ``--sandbox`` there is none, and no code is run.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from statepool.core.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from statepool.serve.config import CodeConfig

if TYPE_CHECKING:
    from statepool.sandbox.execution import Execution
    from statepool.sandbox.pool import Pool
    from statepool.sandbox.sandbox import Sandbox

__all__ = ["Container", "Containers", "Outcome", "new_container_id"]

log = logging.getLogger("statepool.serve")

_SEED = 0
"""Of ``random`` and ``numpy.random`` in every container: the same calls give the same numbers."""


def new_container_id() -> str:
    """A fresh id; it is also what lets its holder use the container, so it cannot be guessed."""
    return f"cntr_{uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell gave.

    Args:
        logs: everything printed, the last expression, and the error if there was one.
        images: PNG figures in base64.
        failed: whether an exception ended it.
    """

    logs: str
    images: tuple[str, ...] = ()
    failed: bool = False

    @classmethod
    def of(cls, done: Execution) -> Outcome:
        """From what a sandbox answers."""
        parts = [done.logs.stdout, done.logs.stderr, *(result.text or "" for result in done.results)]
        if done.error is not None:
            parts.append(done.error.traceback or f"{done.error.name}: {done.error.value}")
        images = tuple(result.forms["png"] for result in done.results if "png" in result.forms)
        return cls("\n".join(part.rstrip("\n") for part in parts if part), images, done.error is not None)


@dataclass(slots=True, eq=False)
class Container:
    """One sandbox, and what the API tells about it. Times are Unix seconds."""

    id: str
    name: str
    sandbox: Sandbox
    idle_seconds: float
    created: float
    used: float
    uploads: set[str] = field(default_factory=set)
    """Paths of files that a client put there; all others were made by code."""


class Containers:
    """All containers of one server. Methods may be called from any thread; those that wait are coroutines."""

    def __init__(self, config: CodeConfig) -> None:
        """Nothing is started before the first container is made."""
        self.config = config
        self._lock = threading.Lock()
        self._pool_lock = threading.Lock()
        self._pool: Pool | None = None
        self._containers: dict[str, Container] = {}
        self._making = 0
        self._closed = False
        self._threads = ThreadPoolExecutor(max(config.code_containers, 1), "statepool-cell")

    def require(self) -> None:
        """Refuse where no code may be run.

        Raises:
            InvalidRequest: the server was started without a sandbox.
        """
        if not self.config.code_containers:
            raise InvalidRequest("tools: this server runs no code; start it with --sandbox", param="tools")

    def get(self, name: str, param: str = "container_id") -> Container:
        """A container that lives.

        Raises:
            NotFound: it never existed, was deleted, or was idle for too long.
        """
        with self._lock:
            found = self._containers.get(name)
        if found is None or not found.sandbox.alive:
            raise NotFound(
                f"container {name!r} is not here: it was never made, was deleted, or has expired "
                f"({self.config.code_idle_seconds:g} s without use end one); make a new one",
                param=param,
            )
        return found

    def alive(self, name: str) -> bool:
        """Whether a container of this id can be used."""
        with self._lock:
            found = self._containers.get(name)
        return found is not None and found.sandbox.alive

    def all(self) -> list[Container]:
        """Those that live, oldest first."""
        with self._lock:
            return [found for found in self._containers.values() if found.sandbox.alive]

    def create(
        self,
        name: str = "",
        *,
        container_id: str | None = None,
        idle_seconds: float | None = None,
        memory_bytes: int | None = None,
        domain: str | None = None,
    ) -> Container:
        """A new container; blocks for the milliseconds a sandbox takes.

        Args:
            name: as the client calls it.
            container_id: promised before; a fresh one by default.
            idle_seconds: without use after which it ends; the server's by default, and at most that.
            memory_bytes: most memory; the server's by default, and at most that.
            domain: whom it belongs to; sandboxes of two domains never share a network.

        Raises:
            InvalidRequest: the server runs no code.
            Overloaded: there are as many as the server allows.
            StatepoolError: no sandbox could be made.
        """
        from statepool.sandbox.sandbox import Sandbox

        self.require()
        self._make_room()
        try:
            idle = min(idle_seconds or self.config.code_idle_seconds, self.config.code_idle_seconds)
            pool = self._started()
            kind = next(reversed(pool.templates))  # the server's own, if it was given one; else plain Python
            memory = min(memory_bytes or self.config.code_memory_bytes, self.config.code_memory_bytes)
            sandbox = Sandbox(kind, pool=pool, timeout=idle, memory=memory, domain=domain, seed=_SEED)
            now = time.time()
            made = Container(container_id or new_container_id(), name, sandbox, idle, now, now)
            with self._lock:
                self._containers[made.id] = made
        finally:
            with self._lock:
                self._making -= 1
        return made

    def close(self, name: str) -> None:
        """End a container.

        Raises:
            NotFound: there is none.
        """
        found = self.get(name)
        with self._lock:
            self._containers.pop(name, None)
        found.sandbox.close()

    def touch(self, container: Container, more_seconds: float = 0.0) -> None:
        """It is being used: its time begins anew."""
        container.used = time.time()
        container.sandbox.set_timeout(container.idle_seconds + more_seconds)

    async def run(self, name: str, code: str, domain: str | None = None) -> Outcome:
        """Run a cell in a container, which is made if only its id is there yet. Cells of one container take turns.

        Cancelled, it interrupts the cell and waits until that has taken effect.

        Raises:
            Overloaded: a new container is one too many.
            StatepoolError: the sandbox failed.
        """
        if self._closed:
            raise Unavailable("the server is shutting down")
        loop = asyncio.get_running_loop()
        with self._lock:
            container = self._containers.get(name)
        if container is None:
            container = await loop.run_in_executor(self._threads, lambda: self.create(container_id=name, domain=domain))
        running = loop.run_in_executor(self._threads, self._run, container, code)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await loop.run_in_executor(None, container.sandbox.context.interrupt)
            await asyncio.wait({running})
            raise

    async def aclose(self) -> None:
        """End all containers and the pool."""
        await asyncio.to_thread(self._close_all)

    def _run(self, container: Container, code: str) -> Outcome:
        seconds = self.config.code_seconds
        self.touch(container, seconds)
        try:
            return Outcome.of(container.sandbox.run_code(code, timeout=seconds))
        finally:
            self.touch(container)

    def _make_room(self) -> None:
        """Count one more, forgetting those that have ended."""
        with self._lock:
            self._containers = {name: each for name, each in self._containers.items() if each.sandbox.alive}
            if len(self._containers) + self._making >= self.config.code_containers:
                raise Overloaded(
                    f"{self.config.code_containers} containers are in use; delete one, wait for one to expire, "
                    "or start the server with a larger --code-containers"
                )
            self._making += 1

    def _started(self) -> Pool:
        """The pool, made when it is first needed.

        Raises:
            Unavailable: the server is shutting down.
            IsolationUnavailable: this host cannot isolate code.
        """
        from statepool.sandbox.pool import Pool
        from statepool.sandbox.template import Template

        with self._pool_lock:
            if self._closed:
                raise Unavailable("the server is shutting down")
            if self._pool is None:
                path = self.config.code_template
                templates = () if path is None else (Template.read(path),)
                most = self.config.code_containers
                self._pool = Pool(templates, driver=self.config.code_driver, most=most)
                log.info("code runs in sandboxes, driver %s", self._pool.driver)
            return self._pool

    def _close_all(self) -> None:
        with self._pool_lock:
            self._closed = True
        for each in self.all():
            if each.sandbox.context.alive:  # a cell may take no interrupt, and nobody waits for what it gives
                each.sandbox.lease.kill(each.sandbox.context.pid)
        self._threads.shutdown(cancel_futures=True)
        for each in self.all():
            each.sandbox.close()
        with self._pool_lock:
            if self._pool is not None:
                self._pool.close()
