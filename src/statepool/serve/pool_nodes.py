"""The pool nodes a server starts for itself."""

from __future__ import annotations

from pathlib import Path

from statepool.cluster import Launcher, Program
from statepool.serve.config import ClusterConfig
from statepool.serve.kept import KeptProcesses

__all__ = ["pool_nodes"]


def pool_nodes(config: ClusterConfig, folder: Path, block_bytes: int, launcher: Launcher) -> KeptProcesses:
    """All nodes of one server, each with its share of the memory. What they hold stays on disk, if there is one.

    Args:
        config: how many, how large, and where their files are.
        folder: for their sockets.
        block_bytes: size of a block.
        launcher: who starts them. A node on another machine listens on a port of that machine.
    """
    if config.pool_dir is not None:
        config.pool_dir.mkdir(parents=True, exist_ok=True)
    memory = max(config.pool_bytes // config.pool_nodes, block_bytes)
    programs = []
    for i in range(config.pool_nodes):
        flags = {"block-bytes": block_bytes, "memory-bytes": memory, "eviction": config.pool_eviction}
        if config.pool_dir is not None:
            flags["disk-path"] = config.pool_dir / f"node{i}.blocks"
            flags["disk-bytes"] = config.pool_disk_bytes // config.pool_nodes
        arguments = (part for name, value in flags.items() for part in (f"--{name}", str(value)))
        programs.append(Program("statepool.kv.pool.commands", ("serve", *arguments), memory_bytes=memory))
    return KeptProcesses("pool node", launcher, programs, addresses("pool", config.pool_nodes, folder, launcher))


def addresses(name: str, count: int, folder: Path, launcher: Launcher) -> list[str]:
    """Where ``count`` processes are to listen: sockets in ``folder``, or a free port of any machine they come to."""
    if launcher.remote:
        return ["tcp://{host}:0"] * count
    return [f"unix:{folder / f'{name}{i}'}" for i in range(count)]
