"""The attention workers a server starts for its engines: they outlive these, and are started again when they end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from statepool.cluster import Launcher, Program
from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineConfig
from statepool.serve.kept import KeptProcesses
from statepool.serve.pool_nodes import addresses

__all__ = ["attended", "attention_workers"]


def attention_workers(engine: EngineConfig, engines: int, folder: Path, launcher: Launcher) -> KeptProcesses | None:
    """As many attention workers for each engine as its settings ask for; None where they name none, or running ones.

    Args:
        engine: the settings of every engine; where they name no number of threads, the workers share the cores out.
        engines: how many there are; block numbers are an engine's own, so each has workers of its own.
        folder: for their sockets.
        launcher: who starts them.
    """
    text = (engine.attention_workers or "").strip()
    if not text.isdigit():
        return None
    count = engines * int(text)
    threads = engine.threads or max((os.cpu_count() or 1) // max(count, 1), 1)
    program = Program(
        "statepool.engine.attention.remote.commands",
        ("serve", "--threads", str(threads)),
        cpus=threads,
        memory_bytes=engine.kv_bytes // max(int(text), 1),
    )
    return KeptProcesses(
        "attention worker", launcher, [program] * count, addresses("attention", count, folder, launcher)
    )


def attended(engine: EngineConfig, engines: int, workers: Sequence[str]) -> list[EngineConfig]:
    """The settings of each of ``engines``, with its share of the attention ``workers``.

    Raises:
        InvalidConfig: they cannot be divided among the engines.
    """
    each = len(workers) // engines
    if len(workers) % engines:
        raise InvalidConfig(
            f"{len(workers)} attention workers cannot be divided among {engines} engines; give each as many",
            param="attention_workers",
        )
    if not workers:
        return [engine] * engines
    shares = [workers[i * each : (i + 1) * each] for i in range(engines)]
    return [replace(engine, attention_workers=",".join(share)) for share in shares]
