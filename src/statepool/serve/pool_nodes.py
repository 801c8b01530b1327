"""The pool nodes a server starts for itself: processes that are watched, and started again when they end."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from statepool.core.errors import InvalidConfig
from statepool.serve.config import ClusterConfig

__all__ = ["PoolNodes"]

log = logging.getLogger("statepool.serve")

_AGAIN_SECONDS = 0.2
_READY_SECONDS = 20


class PoolNodes:
    """All nodes of one server, each with its share of the memory.

    Args:
        config: how many, how large, and where their files are.
        folder: for their sockets.
        block_bytes: size of a block.
    """

    def __init__(self, config: ClusterConfig, folder: Path, block_bytes: int) -> None:
        self._config = config
        self._block_bytes = block_bytes
        self.addresses = [f"unix:{folder / f'pool{i}'}" for i in range(config.pool_nodes)]
        self.processes: list[asyncio.subprocess.Process | None] = [None] * config.pool_nodes
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all nodes and wait until they answer.

        Raises:
            InvalidConfig: one cannot start; its reason is on stderr.
        """
        if self._config.pool_dir is not None:
            await asyncio.to_thread(self._config.pool_dir.mkdir, parents=True, exist_ok=True)
        for i in range(len(self.addresses)):
            process = await self._spawn(i)
            assert process.stdout is not None
            if not await asyncio.wait_for(process.stdout.readline(), _READY_SECONDS):
                raise InvalidConfig("a node of the KV pool did not start; the line above says why", param="pool_bytes")
            self._watchers.append(asyncio.create_task(self._watch(i)))

    async def close(self) -> None:
        """End all nodes; what they hold stays on disk, if there is one."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for process in self.processes:
            if process is not None and process.returncode is None:
                process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), 5)
                except TimeoutError:
                    process.kill()
                    await process.wait()

    async def _spawn(self, i: int) -> asyncio.subprocess.Process:
        config = self._config
        flags = {
            "listen": self.addresses[i],
            "block-bytes": self._block_bytes,
            "memory-bytes": max(config.pool_bytes // config.pool_nodes, self._block_bytes),
            "eviction": config.pool_eviction,
        }
        if config.pool_dir is not None:
            flags["disk-path"] = config.pool_dir / f"node{i}.blocks"
            flags["disk-bytes"] = config.pool_disk_bytes // config.pool_nodes
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "statepool.kv.pool.commands",
            "serve",
            "--with-parent",
            *(part for name, value in flags.items() for part in (f"--{name}", str(value))),
            stdout=asyncio.subprocess.PIPE,
        )
        self.processes[i] = process
        return process

    async def _watch(self, i: int) -> None:
        while True:
            process = self.processes[i]
            assert process is not None
            await process.wait()
            log.warning("pool node %d ended with status %s; starting it again", i, process.returncode)
            await asyncio.sleep(_AGAIN_SECONDS)
            await self._spawn(i)
