"""Shapes of ``/v1/containers``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from statepool.serve.openai.response_schema import MemoryLimit, NetworkPolicy
from statepool.serve.openai.schema import Name, Shape


class ExpiresAfter(Shape):
    """When a container ends: so long after its last use."""

    anchor: Literal["last_active_at"]
    minutes: Annotated[int, Field(ge=1, le=1440)]


class ContainerRequest(Shape):
    """Body of ``POST /v1/containers``."""

    name: Name
    expires_after: ExpiresAfter | None = None
    file_ids: list[str] | None = None
    memory_limit: MemoryLimit | None = None
    network_policy: NetworkPolicy | None = None


class ContainerBody(Shape):
    """A container."""

    id: str
    object: Literal["container"] = "container"
    name: str
    created_at: int
    last_active_at: int
    status: Literal["running"]
    expires_after: ExpiresAfter


class ContainerList(Shape):
    """Containers that live, oldest first."""

    object: Literal["list"] = "list"
    data: list[ContainerBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ContainerFile(Shape):
    """A file in a container. ``source`` is ``user`` if a client put it there."""

    id: str
    object: Literal["container.file"] = "container.file"
    container_id: str
    path: str
    bytes: int
    created_at: int
    source: Literal["user", "assistant"]


class ContainerFileList(Shape):
    """Files of a container, by path."""

    object: Literal["list"] = "list"
    data: list[ContainerFile]
    first_id: str | None
    last_id: str | None
    has_more: bool
