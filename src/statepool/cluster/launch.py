"""One way to start a process: here, or on a machine that Ray picks.

What a process is and does is the same in both cases: a module of this package, run as ``python -m``. It is told where
to find whoever started it by its arguments, in which ``{host}`` stands for the address of the machine it runs on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from statepool.core.errors import Unavailable

__all__ = ["Launcher", "LocalLauncher", "Process", "Program"]

LOCAL_HOST = "127.0.0.1"
ANNOUNCE_SECONDS = 120.0
"""For one that hangs, on a machine however busy: one that ends instead is noticed at once."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and the room it needs.

    Args:
        module: run as ``python -m module``.
        arguments: given to it; ``{host}`` in one becomes the address of the machine it runs on.
        environment: added to that of the machine.
        cpus: cores it needs; a local process takes what there is.
        memory_bytes: memory it needs, likewise.
        node: the machine it has to run on, as a process before it reported it; None leaves the choice open.
    """

    module: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 0.0
    memory_bytes: int = 0
    node: str | None = None
    announces: bool = False
    """Whether it prints a line once it is ready, and nothing after that."""


class Process(Protocol):
    """One process that runs, or has run."""

    pid: int
    """Its number on the machine it runs on."""
    node: str
    """That machine."""
    announcement: str
    """The line it printed, if its program announces itself."""

    @property
    def returncode(self) -> int | None:
        """How it ended: an exit status, or minus the number of a signal; None while it runs."""

    async def wait(self) -> int:
        """How it ended, once it has."""

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing happens once it has ended."""


class Launcher(Protocol):
    """Starts processes."""

    remote: bool
    """Whether they may run on other machines, where only an address of a network reaches this one."""

    def endpoint(self, path: Path) -> str:
        """Where this process can listen so that the others reach it, for ZeroMQ to bind: a socket at ``path``, or a
        free port."""

    async def spawn(self, program: Program) -> Process:
        """Start a process, and wait for its announcement if it makes one.

        Raises:
            Unavailable: no machine has room for it, or it ended or kept silent instead of announcing itself.
        """

    async def close(self) -> None:
        """End every process that still runs."""


class LocalLauncher:
    """Children of this process, which end with it if they watch their parent."""

    remote = False

    def __init__(self) -> None:
        self._running: set[_Child] = set()

    def endpoint(self, path: Path) -> str:
        """A Unix socket at ``path``."""
        return f"ipc://{path}"

    async def spawn(self, program: Program) -> Process:
        """Start a child; see ``Launcher``."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            program.module,
            *(argument.replace("{host}", LOCAL_HOST) for argument in program.arguments),
            env={**os.environ, **program.environment},
            stdout=asyncio.subprocess.PIPE if program.announces else None,
        )
        child = _Child(process)
        self._running = {each for each in self._running if each.returncode is None} | {child}
        if program.announces:
            assert process.stdout is not None
            hangs = False
            try:
                line = await asyncio.wait_for(process.stdout.readline(), ANNOUNCE_SECONDS)
                child.announcement = line.decode().strip()
            except TimeoutError:
                hangs = True
            if not child.announcement:
                child.send_signal(signal.SIGKILL)
                raise silent(program, hangs)
        return child

    async def close(self) -> None:
        """End every child that still runs."""
        for child in self._running:
            child.send_signal(signal.SIGKILL)
        await asyncio.gather(*(child.wait() for child in self._running))
        self._running.clear()


class _Child:
    """A process of this machine."""

    node = LOCAL_HOST

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.announcement = ""

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def send_signal(self, number: int) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)


def silent(program: Program, hangs: bool) -> Unavailable:
    """The error for a process that did not announce itself, but ended or ``hangs``."""
    why = f"it said nothing for {ANNOUNCE_SECONDS:g} s" if hangs else "what it wrote on stderr says why"
    return Unavailable(f"{program.module} did not start; {why}")
