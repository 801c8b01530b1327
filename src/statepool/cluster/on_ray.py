"""Processes on the machines of a Ray cluster.

Each process has a Ray actor beside it, on the same machine: Ray places the actor by the room it asks for, the actor
starts the process and ends with it, and the process ends when it sees its parent gone. So a process is the same
program it is without Ray, and Ray knows what room is taken.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from statepool.cluster.launch import ANNOUNCE_SECONDS, Process, Program, silent
from statepool.core.errors import InvalidConfig, Unavailable

try:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise InvalidConfig("placing processes by Ray needs ray: pip install 'statepool[ray]'", param="ray") from error

__all__ = ["RayLauncher", "join"]

log = logging.getLogger("statepool.cluster")

_PLACE_SECONDS = 60.0
_CONNECT_SECONDS = 5.0
_END_SECONDS = 5.0


class RayLauncher:
    """Starts processes through Ray.

    Args:
        address: of the cluster; ``auto`` for the one this machine belongs to, ``local`` for one made here.

    Raises:
        InvalidConfig: no cluster answers there.
    """

    remote = True

    def __init__(self, address: str) -> None:
        self._made = join(address)
        self._seat = ray.remote(max_concurrency=4, max_restarts=0)(_Seat)
        self._host = ray.util.get_node_ip_address()
        self._running: set[_Remote] = set()

    def endpoint(self, path: Path) -> str:
        """A free port of this machine."""
        return f"tcp://{self._host}:*"

    async def spawn(self, program: Program) -> Process:
        """Start a process where Ray finds room; see ``Launcher``."""
        strategy = NodeAffinitySchedulingStrategy(program.node, soft=True) if program.node else "DEFAULT"
        actor = self._seat.options(
            num_cpus=program.cpus, memory=program.memory_bytes or None, scheduling_strategy=strategy
        ).remote()
        try:
            async with asyncio.timeout(_PLACE_SECONDS):
                node, pid = await actor.start.remote(
                    program.module, program.arguments, dict(program.environment), program.announces
                )
        except (TimeoutError, RayError) as error:
            ray.kill(actor)
            room = f"{program.cpus:g} cores and {program.memory_bytes} bytes of memory"
            raise Unavailable(f"Ray found no machine with {room} for {program.module}: {error}") from error
        process = _Remote(actor, node, pid)
        self._running = {each for each in self._running if each.returncode is None} | {process}
        if program.announces:
            hangs = False
            try:
                async with asyncio.timeout(ANNOUNCE_SECONDS):
                    process.announcement = (await actor.line.remote()).strip()
            except (TimeoutError, RayError) as error:
                hangs = isinstance(error, TimeoutError)
                log.warning("%s on %s did not announce itself: %s", program.module, node, error)
            if not process.announcement:
                process.send_signal(signal.SIGKILL)
                raise silent(program, hangs)
        return process

    async def close(self) -> None:
        """End every process that still runs, and the cluster if it was made here."""
        for process in self._running:
            process.send_signal(signal.SIGKILL)
        if self._running:  # not for ever: a machine may be cut off
            await asyncio.wait([asyncio.ensure_future(each.wait()) for each in self._running], timeout=_END_SECONDS)
        self._running.clear()
        if self._made:
            await asyncio.to_thread(ray.shutdown)


def join(address: str) -> bool:
    """Connect this process to the cluster at ``address``; False if it is connected already.

    Raises:
        InvalidConfig: no cluster answers there.
    """
    if ray.is_initialized():
        return False
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=True, include_dashboard=False if address == "local" else None)
    except Exception as error:  # a node that does not start is a bare one
        raise InvalidConfig(f"no Ray cluster answers at {address!r}: {error}", param="ray") from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray takes them, and they are somebody's
            signal.signal(number, handler)
    return True


def _check_reachable(address: str) -> None:
    """Raise InvalidConfig if nobody listens at a ``host:port``; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"no Ray cluster answers at {address!r}: {error}", param="ray") from error


class _Remote:
    """A process that an actor watches."""

    def __init__(self, actor: Any, node: str, pid: int) -> None:
        self._actor = actor
        self.node = node
        self.pid = pid
        self.announcement = ""
        self.returncode: int | None = None
        self._ended = asyncio.create_task(self._watch())

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            self._actor.signal.remote(number)

    async def _watch(self) -> int:
        try:
            code: int = await self._actor.wait.remote()
        except RayError as error:
            log.warning("process %d on %s is lost: %s", self.pid, self.node, error)
            code = -signal.SIGKILL
        self.returncode = code
        ray.kill(self._actor)
        return code


class _Seat:
    """The actor beside a process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(
        self, module: str, arguments: tuple[str, ...], environment: dict[str, str], announces: bool
    ) -> tuple[str, int]:
        """Start the process; returns the machine and the process's number there."""
        host = ray.util.get_node_ip_address()
        command = [sys.executable, "-m", module, *(argument.replace("{host}", host) for argument in arguments)]
        stdout = subprocess.PIPE if announces else None
        self._process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=stdout, text=True)
        return ray.get_runtime_context().get_node_id(), self._process.pid

    def line(self) -> str:
        """The first line it prints."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def wait(self) -> int:
        """How it ended, once it has."""
        assert self._process is not None
        return self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)
