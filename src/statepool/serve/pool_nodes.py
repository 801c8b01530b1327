"""The pool nodes a server starts for itself: processes that are watched, and started again when they end."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

from statepool.cluster import Launcher, Process, Program
from statepool.core.errors import InvalidConfig, Unavailable
from statepool.kv.pool.commands import address_of
from statepool.serve.config import ClusterConfig

__all__ = ["PoolNodes"]

log = logging.getLogger("statepool.serve")

_AGAIN_SECONDS = 0.2


class PoolNodes:
    """All nodes of one server, each with its share of the memory.

    Args:
        config: how many, how large, and where their files are.
        folder: for their sockets.
        block_bytes: size of a block.
        launcher: who starts their processes. A node on another machine listens on a port of that machine.
    """

    def __init__(self, config: ClusterConfig, folder: Path, block_bytes: int, launcher: Launcher) -> None:
        self._config = config
        self._block_bytes = block_bytes
        self._launcher = launcher
        anywhere = "tcp://{host}:0"
        self.addresses = [
            anywhere if launcher.remote else f"unix:{folder / f'pool{i}'}" for i in range(config.pool_nodes)
        ]
        self.processes: list[Process] = []
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all nodes and wait until they answer.

        Raises:
            InvalidConfig: one cannot start; its reason is on stderr.
        """
        if self._config.pool_dir is not None:
            await asyncio.to_thread(self._config.pool_dir.mkdir, parents=True, exist_ok=True)
        for i in range(len(self.addresses)):
            try:
                process = await self._launcher.spawn(self._program(i, None))
            except Unavailable as error:
                raise InvalidConfig(
                    f"a node of the KV pool did not start: {error.message}", param="pool_bytes"
                ) from error
            self.addresses[i] = address_of(process.announcement)
            self.processes.append(process)
            self._watchers.append(asyncio.create_task(self._watch(i)))

    async def close(self) -> None:
        """End all nodes; what they hold stays on disk, if there is one."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.send_signal(signal.SIGKILL)
                await process.wait()

    def _program(self, i: int, node: str | None) -> Program:
        config = self._config
        memory = max(config.pool_bytes // config.pool_nodes, self._block_bytes)
        flags = {
            "listen": self.addresses[i],
            "block-bytes": self._block_bytes,
            "memory-bytes": memory,
            "eviction": config.pool_eviction,
        }
        if config.pool_dir is not None:
            flags["disk-path"] = config.pool_dir / f"node{i}.blocks"
            flags["disk-bytes"] = config.pool_disk_bytes // config.pool_nodes
        arguments = (part for name, value in flags.items() for part in (f"--{name}", str(value)))
        return Program(
            "statepool.kv.pool.commands",
            ("serve", "--with-parent", *arguments),
            memory_bytes=memory,
            node=node,
            announces=True,
        )

    async def _watch(self, i: int) -> None:
        """Start a node again whenever it ends, where it was: engines know it by its address."""
        while True:
            ended = self.processes[i]
            log.warning("pool node %d ended with status %s; starting it again", i, await ended.wait())
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                self.processes[i] = await self._launcher.spawn(self._program(i, ended.node))
            except Unavailable as error:
                log.error("pool node %d does not start: %s", i, error.message)
