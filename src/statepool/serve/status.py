"""``/cluster``: which engines and pool nodes stand behind this server, and what they do now."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Literal

from starlette.responses import Response

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.kv.pool.link import NodeLink
from statepool.kv.pool.protocol import Stored
from statepool.serve.cluster import Cluster
from statepool.serve.openai.schema import Shape
from statepool.serve.routing import new_router
from statepool.serve.state import GatewayState, State
from statepool.serve.surface import EngineLoad
from statepool.serve.transport import json_response

__all__ = ["NodeStatus", "router", "standing"]

router = new_router()


class NodeStatus(Shape):
    """One node of the KV pool; without figures if it does not answer."""

    address: str
    answers: bool
    blocks: int = 0
    slots: int = 0
    slot_bytes: int = 0
    on_disk: int = 0
    evicted: int = 0
    hits: int = 0
    misses: int = 0
    held: int = 0
    """Blocks that an engine is just reading or writing."""


class ClusterStatus(Shape):
    """All of it."""

    engines: list[EngineLoad]
    nodes: list[NodeStatus]
    step_tokens: int
    """Most tokens that an engine computes in a step."""


@router.get("/cluster", response_model=ClusterStatus, tags=["operate"])
async def cluster(state: State) -> Response:
    """Engines by role with their load, and what the nodes of the KV pool hold."""
    state.ready_model()
    return json_response({**await standing(state), "step_tokens": state.config.engine.max_batched_tokens})


async def standing(state: GatewayState) -> dict[str, list[dict[str, object]]]:
    """``engines`` and ``nodes`` of this moment, with the fields of ``ClusterStatus``."""
    nodes = await asyncio.gather(*(asyncio.to_thread(_node, address) for address in state.engine.pool_addresses()))
    return {"engines": [asdict(load) for load in state.engine.loads()], "nodes": list(nodes)}


class RoleChange(Shape):
    """What an engine shall do from now on."""

    role: Literal["prefill", "decode", "mixed"]


class Changed(Shape):
    """The change is in force."""

    status: str


@router.post("/cluster/{number}/role", response_model=Changed, tags=["operate"])
async def change_role(number: int, body: RoleChange, state: State) -> Response:
    """Let an engine do something else; what runs on it stays."""
    _cluster(state).set_role(number, body.role)
    return json_response({"status": "ok"})


@router.post("/cluster/{number}/restart", response_model=Changed, tags=["operate"])
async def restart(number: int, state: State) -> Response:
    """Give an engine a new process once it has drained; answers when the new one serves."""
    await _cluster(state).restart(number)
    return json_response({"status": "ok"})


def _cluster(state: State) -> Cluster:
    state.ready_model()
    if not isinstance(state.engine, Cluster):
        raise InvalidRequest(
            "this server has one engine and no cluster; start it with --workers, or --prefill and --decode"
        )
    return state.engine


def _node(address: str) -> dict[str, object]:
    link = NodeLink(address)
    try:
        found: Stored | None = link.stats()
    except (OSError, StatepoolError):
        found = None
    finally:
        link.close()
    figures = (
        {}
        if found is None
        else {name: getattr(found, name) for name in NodeStatus.model_fields if hasattr(found, name)}
    )
    return NodeStatus(address=address, answers=found is not None, **figures).model_dump()
