"""Processes that a server keeps: started with it, started again when they end, ended with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from dataclasses import replace

from statepool.cluster import Launcher, Process, Program
from statepool.core.errors import InvalidConfig, Unavailable

__all__ = ["KeptProcesses"]

log = logging.getLogger("statepool.serve")

_AGAIN_SECONDS = 0.1
_END_SECONDS = 5.0


class KeptProcesses:
    """Some processes of one kind, each at an address that stays its own.

    Args:
        what: they are, in a message.
        launcher: who starts them.
        programs: one each. Each takes ``--listen`` and announces ``... at ADDRESS: ...`` or ``... at ADDRESS``.
        addresses: where each is to listen, or ``tcp://{host}:0`` for a free port of whatever machine it comes to.
    """

    def __init__(self, what: str, launcher: Launcher, programs: Sequence[Program], addresses: Sequence[str]) -> None:
        self._what = what
        self._launcher = launcher
        self._programs = programs
        self.addresses = list(addresses)
        self._processes: list[Process] = []
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def pids(self) -> list[int]:
        """Process ids of those that run now, each on its machine."""
        return [process.pid for process in self._processes]

    async def start(self) -> None:
        """Start all and wait until they listen.

        Raises:
            InvalidConfig: one cannot start; its reason is on stderr.
        """
        for i in range(len(self._programs)):
            try:
                process = await self._launcher.spawn(self._program(i, None))
            except Unavailable as error:
                raise InvalidConfig(f"{self._what} {i} did not start: {error.message}", param="cluster") from error
            self.addresses[i] = process.announcement.partition(" at ")[2].partition(": ")[0]
            self._processes.append(process)
            self._watchers.append(asyncio.create_task(self._watch(i)))

    async def close(self) -> None:
        """End all."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                await asyncio.wait_for(process.wait(), _END_SECONDS)
            except TimeoutError:
                process.send_signal(signal.SIGKILL)
                with contextlib.suppress(TimeoutError):  # a machine may be cut off
                    await asyncio.wait_for(process.wait(), _END_SECONDS)

    def _program(self, i: int, node: str | None) -> Program:
        program = self._programs[i]
        arguments = (*program.arguments, "--listen", self.addresses[i], "--with-parent")
        return replace(program, arguments=arguments, node=node, announces=True)

    async def _watch(self, i: int) -> None:
        """Start a process again whenever it ends, on the same machine: the others know it by its address."""
        while True:
            ended = self._processes[i]
            log.warning("%s %d ended with status %s; starting it again", self._what, i, await ended.wait())
            while self._processes[i] is ended:
                await asyncio.sleep(_AGAIN_SECONDS)
                try:
                    self._processes[i] = await self._launcher.spawn(self._program(i, ended.node))
                except Unavailable as error:
                    log.error("%s %d does not start: %s", self._what, i, error.message)
