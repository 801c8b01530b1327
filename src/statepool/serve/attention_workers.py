"""The attention workers a server starts for its engines: they outlive these, and are started again when they end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineConfig

__all__ = ["AttentionWorkers", "attended"]

log = logging.getLogger("statepool.serve")

_AGAIN_SECONDS = 0.1
_READY_SECONDS = 20


class AttentionWorkers:
    """All attention workers of one server: so many for each engine, whose block numbers are its own.

    Args:
        engines: how many engines there are.
        each: attention workers of each.
        folder: for their sockets.
        threads: of the kernels of each; None shares the cores out.
    """

    def __init__(self, engines: int, each: int, folder: Path, threads: int | None) -> None:
        self._each = each
        self._threads = threads or max((os.cpu_count() or 1) // max(engines * each, 1), 1)
        self._addresses = [f"unix:{folder / f'attention{i}'}" for i in range(engines * each)]
        self.processes: list[asyncio.subprocess.Process | None] = [None] * len(self._addresses)
        self._watchers: list[asyncio.Task[None]] = []

    def of(self, engine: int) -> list[str]:
        """Addresses of one engine's workers."""
        return self._addresses[engine * self._each : (engine + 1) * self._each]

    async def start(self) -> None:
        """Start all and wait until they listen.

        Raises:
            InvalidConfig: one cannot start; its reason is on stderr.
        """
        for i in range(len(self._addresses)):
            process = await self._spawn(i)
            assert process.stdout is not None
            if not await asyncio.wait_for(process.stdout.readline(), _READY_SECONDS):
                raise InvalidConfig(
                    "an attention worker did not start; the line above says why", param="attention_workers"
                )
            self._watchers.append(asyncio.create_task(self._watch(i)))

    async def close(self) -> None:
        """End all, and with them the KV they hold."""
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
        address = self._addresses[i]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "statepool.engine.attention.remote.commands",
            "serve",
            "--listen",
            address,
            "--with-parent",
            "--threads",
            str(self._threads),
            stdout=asyncio.subprocess.PIPE,
        )
        self.processes[i] = process
        return process

    async def _watch(self, i: int) -> None:
        while True:
            process = self.processes[i]
            assert process is not None
            await process.wait()
            log.warning("attention worker %d ended with status %s; starting it again", i, process.returncode)
            await asyncio.sleep(_AGAIN_SECONDS)
            await self._spawn(i)


def attended(engine: EngineConfig, engines: int, folder: Path) -> tuple[AttentionWorkers | None, list[EngineConfig]]:
    """The settings of each of ``engines``, with attention workers of its own; and these, where they are to be started.

    Raises:
        InvalidConfig: the addresses given cannot be divided among the engines.
    """
    text = (engine.attention_workers or "").strip()
    if not text:
        return None, [engine] * engines
    started = None
    if text.isdigit():
        started = AttentionWorkers(engines, int(text), folder, engine.threads)
        shares = [started.of(i) for i in range(engines)]
    else:
        addresses = text.split(",")
        each = len(addresses) // engines
        if len(addresses) % engines:
            raise InvalidConfig(
                f"{len(addresses)} attention workers cannot be divided among {engines} engines; give each as many",
                param="attention_workers",
            )
        shares = [addresses[i * each : (i + 1) * each] for i in range(engines)]
    return started, [replace(engine, attention_workers=",".join(share)) for share in shares]
