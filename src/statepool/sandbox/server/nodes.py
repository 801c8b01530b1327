"""The nodes of a server of several: started through ``cluster``, looked after, replaced when they end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from statepool.cluster import Launcher, Process, Program
from statepool.core.errors import StatepoolError, Unavailable
from statepool.sandbox.errors import SandboxGone
from statepool.sandbox.policy import NodeLoad, by_room

__all__ = ["PATIENCE_SECONDS", "Node", "Nodes"]

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_END_SECONDS = 20.0
PATIENCE_SECONDS = 10.0
_RETRY_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Node:
    """One node. ``live`` is what it said last, and what was asked of it since."""

    name: str
    process: Process
    url: str
    live: int = 0
    most: int = 1
    asked: int = 0
    """Creates sent to it so far."""

    @property
    def alive(self) -> bool:
        """Whether its process runs, as far as is known."""
        return self.process.returncode is None


class Nodes:
    """All nodes of one front.

    Args:
        launcher: who starts them.
        program: what to start, by the node's name.
        count: how many.
        key: what they ask for.
    """

    def __init__(self, launcher: Launcher, program: Callable[[str], Program], count: int, key: str) -> None:
        self._launcher, self._program, self.count = launcher, program, count
        self._numbers = itertools.count(1)
        self._nodes: dict[str, Node] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        # A cell may run for as long as it likes; only a node that cannot be reached is given up.
        patience = httpx.Timeout(None, connect=PATIENCE_SECONDS)
        self.client = httpx.AsyncClient(headers={"x-api-key": key}, timeout=patience, limits=limits, trust_env=False)

    async def start(self) -> None:
        """Start all nodes.

        Raises:
            Unavailable: one did not start; its words on stderr say why.
        """
        done = await asyncio.gather(*(self._spawn() for _ in range(self.count)), return_exceptions=True)
        for problem in done:
            if problem is not None:
                raise problem
        self._keep(self._look())

    async def close(self) -> None:
        """End all nodes and what runs in them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for node in self._nodes.values():
            node.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await asyncio.gather(*(node.process.wait() for node in self._nodes.values()))
        await self.client.aclose()
        await self._launcher.close()

    @property
    def alive(self) -> list[Node]:
        """Those that run."""
        return [node for node in self._nodes.values() if node.alive]

    def of(self, name: str) -> Node:
        """The node that an id names.

        Raises:
            SandboxGone: it names none, or one that has ended.
        """
        node = self._nodes.get(name.partition("-")[0])
        if node is None or not node.alive:
            raise SandboxGone(f"sandbox {name} was not found: its node is not there")
        return node

    def names(self, name: str) -> bool:
        """Whether an id is of a node that runs."""
        node = self._nodes.get(name.partition("-")[0])
        return "-" in name and node is not None and node.alive

    def in_order(self) -> list[Node]:
        """Nodes to ask for one more, the emptiest first.

        Raises:
            Unavailable: no node runs at this moment.
        """
        alive = {node.name: node for node in self.alive}
        if not alive:
            raise Unavailable("no node runs at this moment; one is being started")
        return [alive[name] for name in by_room([NodeLoad(each.name, each.live, each.most) for each in alive.values()])]

    async def _spawn(self) -> None:
        name = f"n{next(self._numbers)}"
        process = await self._launcher.spawn(self._program(name))
        node = Node(name, process, process.announcement)
        self._nodes[name] = node
        await self._ask(node)
        self._keep(self._watch(node))

    async def _watch(self, node: Node) -> None:
        """Put another node in the place of one that has ended. It has another name: ids of the old one stay gone."""
        code = await node.process.wait()
        _log.warning("node %s ended (%d) and its sandboxes with it; another one is started", node.name, code)
        del self._nodes[node.name]
        while True:
            try:
                return await self._spawn()
            except StatepoolError as error:
                _log.warning("no node could be started, trying again: %s", error.message)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _look(self) -> None:
        """Ask every node how full it is, again and again."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.gather(*(self._ask(node) for node in self.alive))

    async def _ask(self, node: Node) -> None:
        before = node.asked
        try:
            told = (await self.client.get(f"{node.url}/health", timeout=PATIENCE_SECONDS)).json()
            node.live, node.most = int(told["busy"]) + node.asked - before, int(told["most"])
        except (httpx.HTTPError, ValueError, KeyError) as error:
            _log.warning("node %s does not say how it is: %r", node.name, error)
            node.live = node.most  # it is asked last until it answers

    def _keep(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
