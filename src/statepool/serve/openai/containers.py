"""``/v1/containers``: containers of the code interpreter, and the files in them.

A file's id is its path, encoded, so that what code writes has an id without anybody keeping a list.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from statepool.core.errors import InvalidRequest, NotFound
from statepool.sandbox.template import HOME
from statepool.serve.containers import Container
from statepool.serve.openai.code_calls import check_memory
from statepool.serve.openai.container_schema import (
    ContainerBody,
    ContainerFile,
    ContainerFileList,
    ContainerList,
    ContainerRequest,
)
from statepool.serve.openai.response_schema import Deleted
from statepool.serve.routing import new_router
from statepool.serve.state import State
from statepool.serve.transport import json_response

if TYPE_CHECKING:
    from statepool.sandbox.files import Entry

router = new_router()

_DEPTH = 16
_PREFIX = "cfile_"


@router.post("/v1/containers", response_model=ContainerBody, tags=["code"])
async def create_container(body: ContainerRequest, state: State) -> Response:
    """Make a container."""
    if body.file_ids:
        raise InvalidRequest("file_ids: put files into the container once it is made", param="file_ids")
    if body.network_policy is not None and body.network_policy.type != "disabled":
        raise InvalidRequest("network_policy: containers of this server have no network", param="network_policy")
    most = state.config.code.code_memory_bytes
    memory = None if body.memory_limit is None else check_memory(body.memory_limit, most, "memory_limit")
    idle = None if body.expires_after is None else body.expires_after.minutes * 60.0
    made = await asyncio.to_thread(state.containers.create, body.name, idle_seconds=idle, memory_bytes=memory)
    return json_response(_container(made))


@router.get("/v1/containers", response_model=ContainerList, tags=["code"])
async def list_containers(state: State) -> Response:
    """List the containers that live."""
    return json_response(_list([_container(each) for each in state.containers.all()]))


@router.get("/v1/containers/{container_id}", response_model=ContainerBody, tags=["code"])
async def get_container(container_id: str, state: State) -> Response:
    """Describe a container."""
    return json_response(_container(state.containers.get(container_id)))


@router.delete("/v1/containers/{container_id}", response_model=Deleted, tags=["code"])
async def delete_container(container_id: str, state: State) -> Response:
    """End a container."""
    await asyncio.to_thread(state.containers.close, container_id)
    return json_response({"id": container_id, "object": "container.deleted", "deleted": True})


@router.post("/v1/containers/{container_id}/files", response_model=ContainerFile, tags=["code"])
async def create_file(container_id: str, request: HttpRequest, state: State) -> Response:
    """Put a file into a container: multipart, in the field ``file``."""
    container = state.containers.get(container_id)
    async with request.form() as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile) or not upload.filename:
            raise InvalidRequest("file: the body must be multipart/form-data with a file of a name", param="file")
        name, data = upload.filename, await upload.read()
    entry = await asyncio.to_thread(container.sandbox.files.write, name, data)
    container.uploads.add(entry.path)
    state.containers.touch(container)
    return json_response(_file(container, entry))


@router.get("/v1/containers/{container_id}/files", response_model=ContainerFileList, tags=["code"])
async def list_files(container_id: str, state: State) -> Response:
    """List the files in a container's home folder."""
    container = state.containers.get(container_id)
    found = await asyncio.to_thread(container.sandbox.files.list, HOME, _DEPTH)
    return json_response(_list([_file(container, entry) for entry in found if entry.kind == "file"]))


@router.get("/v1/containers/{container_id}/files/{file_id}", response_model=ContainerFile, tags=["code"])
async def get_file(container_id: str, file_id: str, state: State) -> Response:
    """Describe a file."""
    container = state.containers.get(container_id)
    return json_response(_file(container, await asyncio.to_thread(container.sandbox.files.info, _path(file_id))))


@router.get(
    "/v1/containers/{container_id}/files/{file_id}/content",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
    tags=["code"],
)
async def get_content(container_id: str, file_id: str, state: State) -> Response:
    """The bytes of a file."""
    container = state.containers.get(container_id)
    data = await asyncio.to_thread(container.sandbox.files.read, _path(file_id))
    return Response(data, media_type="application/octet-stream")


@router.delete("/v1/containers/{container_id}/files/{file_id}", response_model=Deleted, tags=["code"])
async def delete_file(container_id: str, file_id: str, state: State) -> Response:
    """Remove a file."""
    container, path = state.containers.get(container_id), _path(file_id)
    await asyncio.to_thread(container.sandbox.files.remove, path)
    container.uploads.discard(path)
    return json_response({"id": file_id, "object": "container.file.deleted", "deleted": True})


def _container(container: Container) -> dict[str, Any]:
    return {
        "id": container.id,
        "object": "container",
        "name": container.name,
        "created_at": int(container.created),
        "last_active_at": int(container.used),
        "status": "running",
        "expires_after": {"anchor": "last_active_at", "minutes": max(1, round(container.idle_seconds / 60))},
    }


def _file(container: Container, entry: Entry) -> dict[str, Any]:
    return {
        "id": _PREFIX + base64.urlsafe_b64encode(entry.path.encode(errors="surrogateescape")).decode().rstrip("="),
        "object": "container.file",
        "container_id": container.id,
        "path": entry.path,
        "bytes": entry.size,
        "created_at": int(entry.modified),
        "source": "user" if entry.path in container.uploads else "assistant",
    }


def _path(file_id: str) -> str:
    try:
        text = file_id.removeprefix(_PREFIX)
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode(errors="surrogateescape")
    except (binascii.Error, ValueError):
        raise NotFound(f"file {file_id!r} is not in the container", param="file_id") from None


def _list(data: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": False}
