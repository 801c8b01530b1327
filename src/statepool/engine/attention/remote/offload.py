"""The attention workers of one engine: those it is told of, or processes it starts for itself."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from statepool.core.errors import InvalidConfig
from statepool.core.sockets import check_address
from statepool.engine import cuda
from statepool.engine.attention.remote.runner import Offload, RemoteRunner, ToldPool
from statepool.engine.attention.spec import AttentionSpec
from statepool.engine.config import EngineConfig
from statepool.engine.loader import Checkpoint
from statepool.engine.models.decoder import DecoderConfig
from statepool.kv import KVLayout
from statepool.native import kernels, reason

__all__ = ["remote_runner"]

_AGAIN_SECONDS = 0.5


class LocalWorkers:
    """Attention workers as processes of this machine, which end with this one.

    Args:
        count: how many.
        threads: of the kernels of each; None shares the cores out.
    """

    def __init__(self, count: int, threads: int | None) -> None:
        self._threads = threads or max((os.cpu_count() or 1) // count, 1)
        self._started = [-math.inf] * count
        folder = Path(tempfile.mkdtemp(prefix="statepool-"))
        self.addresses = [f"unix:{folder / f'attention{i}'}" for i in range(count)]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.close = weakref.finalize(self, _end, self.processes, folder)

    def restart(self) -> None:
        """Start those that do not run."""
        for i, address in enumerate(self.addresses):
            if i < len(self.processes) and self.processes[i].poll() is None:
                continue
            if time.monotonic() < self._started[i] + _AGAIN_SECONDS:
                continue  # one that ends at once shall not be started without a pause
            self._started[i] = time.monotonic()
            command = [
                "-m",
                "statepool.engine.attention.remote.commands",
                "serve",
                "--listen",
                address,
                "--with-parent",
            ]
            process = subprocess.Popen(
                [sys.executable, *command, "--threads", str(self._threads)], stdout=subprocess.DEVNULL
            )
            self.processes[i : i + 1] = [process]


def _end(processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def remote_runner(
    config: EngineConfig, decoder: DecoderConfig, checkpoint: Checkpoint, layout: KVLayout, blocks: int, max_len: int
) -> tuple[RemoteRunner, ToldPool]:
    """The runner of an engine with ``config.attention_workers``, and the books of its blocks.

    Raises:
        InvalidConfig: no such workers, or what cannot be combined with them. KVLost: one does not answer.
    """
    if kernels is None or config.backend == "torch":
        raise InvalidConfig(
            f"attention workers need the native backend: {reason or config.backend}", param="attention_workers"
        )
    if AttentionSpec.parse(config.attention).sparse is not None:
        raise InvalidConfig(
            f"attention workers run full attention, not {config.attention!r}", param="attention_workers"
        )
    for name, wanted in (("kv_budget", None), ("speculate", "off")):
        value = getattr(config, name)
        if value != wanted and not (name == "speculate" and value == "ngram"):
            raise InvalidConfig(f"{name} {value} does not work with attention workers", param=name)
    if config.threads is not None:
        kernels.set_threads(config.threads)
    restart: Callable[[], None] | None = None
    text = (config.attention_workers or "").strip()
    if text.isdigit():
        if not int(text):
            raise InvalidConfig("attention_workers must be at least 1, got 0", param="attention_workers")
        local = LocalWorkers(int(text), config.threads)
        addresses, restart = local.addresses, local.restart
    else:
        addresses = [address.strip() for address in text.split(",")]
        for address in addresses:
            _check(address)
    offload = Offload(
        addresses,
        config.attention_split,
        config.attention_batches,
        config.attention_here,
        patience=config.attention_patience,
        restart=restart,
    )
    identity = f"{checkpoint.fingerprint()}/{config.quant}/{layout.name}"
    parts = (decoder, checkpoint, config.quant, layout, blocks, max_len, offload, identity)
    runner: RemoteRunner
    if config.backend == "cuda" or (config.backend == "auto" and cuda.missing() is None):
        from statepool.engine.attention.remote.gpu import GpuRemoteRunner

        runner = GpuRemoteRunner(*parts)
    else:
        runner = RemoteRunner(kernels, *parts)
    return runner, ToldPool(blocks, runner)


def _check(address: str) -> None:
    try:
        check_address(address)
    except InvalidConfig:
        raise InvalidConfig(
            f"attention_workers must be a number, or addresses like unix:/path or tcp://host:port with commas, got "
            f"{address!r}",
            param="attention_workers",
        ) from None
