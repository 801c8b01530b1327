"""What one file says about the whole platform. A room that is not in it is not started."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from statepool.dashboard.sources import Sources
from statepool.serve.config import ServeConfig

__all__ = ["House", "HouseFile", "SandboxRoom", "SequenceRoom", "StoreRoom", "VectorRoom"]


class _Part(BaseModel):
    """A table of the file: no other keys, no changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SandboxRoom(_Part):
    """The sandbox server, a process of its own."""

    port: int = Field(8100, ge=0, le=65535)
    """0 takes a free one."""
    driver: Literal["auto", "ns", "userns"] = "auto"
    ready: int = Field(2, ge=0)
    """Slots that wait ready per kind."""
    most: int = Field(512, ge=1)
    network: bool = False
    templates: tuple[Path, ...] = ()
    """Manifests of further kinds."""


class StoreRoom(_Part):
    """The durable store, a process of its own."""

    path: Path
    listen: str | None = None
    """``unix:///path`` or ``tcp://host:port``; a socket in ``path`` by default."""
    capacity: str = "1GiB"

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.listen or f"unix://{self.path.resolve()}/socket"


class VectorRoom(_Part):
    """An index and its server, a process of its own."""

    path: Path
    """What `statepool vector build` wrote."""
    port: int = Field(8300, ge=0, le=65535)
    """0 takes a free one."""


class SequenceRoom(_Part):
    """Codes to show: certificates of a search, or the archive in a store."""

    records: Path | None = None
    archive: str | None = None


class HouseFile(_Part):
    """The file. ``serve`` is checked against the settings of ``statepool serve``; see ``check.read``."""

    serve: dict[str, Any] = Field(default_factory=dict)
    sandbox: SandboxRoom | None = None
    store: StoreRoom | None = None
    vector: VectorRoom | None = None
    rollout: Path | None = None
    train: Path | None = None
    sequences: SequenceRoom | None = None
    topology: Path | None = None


class House(BaseModel):
    """A file in which nothing is wrong, with the settings of its server."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    file: HouseFile
    serve: ServeConfig

    def sources(self, sandbox: str | None, vector: str | None) -> Sources:
        """What the dashboard looks at; ``sandbox`` and ``vector`` are the addresses that their servers got."""
        file, codes = self.file, self.file.sequences or SequenceRoom()
        return Sources(
            sandbox=sandbox,
            store=None if file.store is None else file.store.path,
            vector=vector,
            rollout=file.rollout,
            train=file.train,
            records=codes.records,
            archive=codes.archive,
            topology=file.topology,
        )
