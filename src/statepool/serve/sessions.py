"""``/v1/sessions``: conversations whose KV is kept by name between requests."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from starlette.responses import Response

from statepool.serve.openai.response_schema import Deleted
from statepool.serve.openai.schema import Name, Shape
from statepool.serve.routing import new_router
from statepool.serve.state import State
from statepool.serve.transport import json_response

router = new_router()

Salt = Annotated[str, Query(max_length=256, description="The cache_salt the session was made with.")]


class SessionCard(Shape):
    """One session."""

    id: str
    object: Literal["session"] = "session"


class SessionList(Shape):
    """All sessions of one salt, least recently used first."""

    object: Literal["list"] = "list"
    data: list[SessionCard]


class ForkRequest(Shape):
    """Body of ``POST /v1/sessions/{name}/fork``."""

    name: Name


@router.get("/v1/sessions", response_model=SessionList, tags=["sessions"])
async def list_sessions(state: State, cache_salt: Salt = "") -> Response:
    """List sessions."""
    state.ready_model()
    names = await state.engine.call("session_names", salt=cache_salt)
    return json_response({"object": "list", "data": [{"id": name, "object": "session"} for name in names]})


@router.delete("/v1/sessions/{name}", response_model=Deleted, tags=["sessions"])
async def delete_session(name: str, state: State, cache_salt: Salt = "") -> Response:
    """Forget a session and free its KV."""
    state.ready_model()
    await state.engine.call("drop_session", name=name, salt=cache_salt)
    return json_response({"id": name, "object": "session", "deleted": True})


@router.post("/v1/sessions/{name}/fork", response_model=SessionCard, tags=["sessions"])
async def fork_session(name: str, body: ForkRequest, state: State, cache_salt: Salt = "") -> Response:
    """Start a second session where this one is; their common KV is shared."""
    state.ready_model()
    await state.engine.call("fork_session", name=name, new=body.name, salt=cache_salt)
    return json_response({"id": body.name, "object": "session"})


@router.post("/v1/sessions/{name}/park", response_model=SessionCard, tags=["sessions"])
async def park_session(name: str, state: State, cache_salt: Salt = "") -> Response:
    """Move a session's KV out of the pool until it is continued."""
    state.ready_model()
    await state.engine.call("park_session", name=name, salt=cache_salt)
    return json_response({"id": name, "object": "session"})
