"""Mooncake's transfer engine as a way for blocks between machines: one-sided reads and writes of a node's memory.

Optional: ``pip install 'statepool[mooncake]'``, and the system's libibverbs, also where only TCP is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from statepool.core.errors import InvalidConfig

__all__ = ["Mover", "missing", "shared"]

PROTOCOLS = ("tcp", "rdma")
_HANDSHAKE = "P2PHANDSHAKE"
"""The two sides find each other by themselves, without a metadata service."""


def missing() -> str | None:
    """Why the transfer engine cannot be used here; None if it can."""
    try:
        import mooncake.engine  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


class Mover:
    """One end. Memory is registered before bytes of it move.

    Args:
        host: name or address of this machine that the other side reaches.
        protocol: ``tcp`` or ``rdma``.

    Raises:
        InvalidConfig: the engine is not installed, or does not start.
    """

    def __init__(self, host: str, protocol: str) -> None:
        if protocol not in PROTOCOLS:
            raise InvalidConfig(f"transfer must be one of {', '.join(PROTOCOLS)}, got {protocol!r}", param="transfer")
        reason = missing()
        if reason is not None:
            raise InvalidConfig(f"transfer {protocol} needs Mooncake's transfer engine: {reason}", param="transfer")
        from mooncake.engine import TransferEngine

        self._engine: Any = TransferEngine()
        if self._engine.initialize(host, _HANDSHAKE, protocol, ""):
            raise InvalidConfig(
                f"Mooncake's transfer engine does not start with {protocol} on {host}", param="transfer"
            )
        self.session = f"{host}:{self._engine.get_rpc_port()}"
        """What the other side calls this one."""

    def register(self, address: int, size: int) -> None:
        """Let bytes move to and from this memory.

        Raises:
            InvalidConfig: it cannot be registered.
        """
        if self._engine.register_memory(address, size):
            raise InvalidConfig(f"{size} bytes of memory cannot be registered with Mooncake", param="transfer")

    def release(self, address: int) -> None:
        """Forget registered memory."""
        self._engine.unregister_memory(address)

    def read(self, session: str, into: Sequence[int], source: Sequence[int], size: int) -> None:
        """Copy ``size`` bytes from each address of the other side to one of ours. OSError: they do not come."""
        if self._engine.batch_transfer_sync_read(session, [*into], [*source], [size] * len(into)):
            raise ConnectionError(f"Mooncake could not read {len(into)} blocks of {session}")

    def write(self, session: str, source: Sequence[int], into: Sequence[int], size: int) -> None:
        """Copy ``size`` bytes from each address of ours to one of the other side. OSError: they do not go."""
        if self._engine.batch_transfer_sync_write(session, [*source], [*into], [size] * len(into)):
            raise ConnectionError(f"Mooncake could not write {len(into)} blocks of {session}")


@cache
def shared(host: str, protocol: str) -> Mover:
    """The one of this process: its threads and ports are costly. Raises as ``Mover``."""
    return Mover(host, protocol)
