"""Where the dashboard looks: addresses and files of the rooms beside the server. None: such a room is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Sources"]


@dataclass(frozen=True, slots=True)
class Sources:
    """What each page shows.

    Args:
        sandbox: address of the sandbox server, as ``http://host:port``.
        store: folder of a store that some process of this machine serves.
        vector: address of the server of an index, as ``http://host:port``.
        rollout: timeline of ``statepool rollout run --timeline``.
        train: folder of ``statepool train``.
        records: certificates of ``statepool seq search --out``.
        archive: folder or address of a store with the archive of sequences.
        topology: certificates of ``statepool topo scan --out``.
    """

    sandbox: str | None = None
    store: Path | None = None
    vector: str | None = None
    rollout: Path | None = None
    train: Path | None = None
    records: Path | None = None
    archive: str | None = None
    topology: Path | None = None
