"""One address for several nodes: creates go where there is room, everything else to the node that an id names.

The front holds no sandbox and no state of one. Bodies pass through as they come, so that the wire is the nodes' own.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from statepool.core.errors import Overloaded, StatepoolError
from statepool.sandbox.errors import SandboxGone
from statepool.sandbox.server.control import page, refused
from statepool.sandbox.server.doors import LOCKED, gone, locked
from statepool.sandbox.server.nodes import PATIENCE_SECONDS, Node, Nodes
from statepool.web import url_of, uvicorn_server

__all__ = ["create_front", "serve_front"]

_HOPS = {"connection", "keep-alive", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"}
_FULL = 429
_PAGE = 100


def create_front(nodes: Nodes, *, api_key: str | None = None) -> ASGIApp:
    """The application. The nodes are the caller's to start and to end."""

    async def health(_: Request) -> Response:
        loads = [{"node": node.name, "busy": node.live, "most": node.most} for node in nodes.alive]
        return JSONResponse({"status": "ok", "nodes": loads}, 200 if loads else 503)

    async def metrics(_: Request) -> Response:
        alive = nodes.alive
        texts = await asyncio.gather(*(_text(nodes, node, "/metrics") for node in alive))
        named = [(node.name, text) for node, text in zip(alive, texts, strict=True)]
        return PlainTextResponse(_merged(named), media_type="text/plain; version=0.0.4")

    async def create(request: Request) -> Response:
        body = await request.body()
        template = _field(body, "templateID")
        if nodes.names(template):  # a moment of a node: only that one has it
            return await _forward(nodes, nodes.of(template), request, body)
        for node in nodes.in_order():
            node.live, node.asked = node.live + 1, node.asked + 1
            try:
                answer = await _forward(nodes, node, request, body)
            except SandboxGone:  # it has just ended; the others have not
                continue
            if answer.status_code != _FULL:
                return answer
            node.live = node.most
            if answer.background is not None:  # which frees the connection of an answer that nobody reads
                await answer.background()
        raise Overloaded("all nodes are full; close a sandbox, or start more nodes")

    async def one(request: Request) -> Response:
        return await _forward(nodes, nodes.of(request.path_params["id"]), request, await request.body())

    async def listing(request: Request) -> Response:
        query = [(key, value) for key, value in request.query_params.multi_items() if key not in ("nextToken", "limit")]
        found = await asyncio.gather(*(_all(nodes, node, request.url.path, query) for node in nodes.alive))
        everything = sorted((item for part in found for item in part), key=lambda item: str(item.get("startedAt")))
        return page(everything, request.query_params)

    async def any_node(request: Request) -> Response:
        return await _forward(nodes, nodes.in_order()[0], request, b"")

    async def failed(_: Request, error: Exception) -> Response:
        assert isinstance(error, StatepoolError)
        return refused(error)

    named = "/sandboxes/{id}"
    routes = [
        Route("/health", health),
        Route("/metrics", metrics),
        *(Route(path, create, methods=["POST"]) for path in ("/v2/sandboxes", "/sandboxes", "/run_code")),
        *(Route(path, listing, methods=["GET"]) for path in ("/v2/sandboxes", "/sandboxes", "/snapshots")),
        Route("/templates", any_node, methods=["GET"]),
        *(Route(path, one, methods=["GET", "DELETE"]) for path in (named, "/templates/{id}")),
        Route(named + "/{rest:path}", one, methods=["GET", "POST"]),
        Route(f"/v2{named}/connect", one, methods=["POST"]),
    ]
    plane = Starlette(routes=routes, exception_handlers={StatepoolError: failed})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope.get("headers", ())}
        if scope["type"] == "http" and (name := headers.get("e2b-sandbox-id")):
            await _data(nodes, name, scope, receive, send)
        elif scope["type"] == "http" and locked(scope["path"], headers, api_key):
            await LOCKED(scope, receive, send)
        else:
            await plane(scope, receive, send)

    return app


def serve_front(nodes: Nodes, listener: socket.socket, api_key: str | None) -> None:
    """Start the nodes, say where they answer, and serve until a signal says to stop.

    Raises:
        Unavailable: a node did not start.
    """

    async def serve() -> None:
        app = create_front(nodes, api_key=api_key)
        server = uvicorn_server(app, lifespan="off")
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, setattr, server, "should_exit", True)
        try:
            await nodes.start()
            sys.stdout.write(f"sandboxes on {url_of(listener)}, nodes: {nodes.count}\n")
            sys.stdout.flush()
            await server.serve(sockets=[listener])
        finally:
            await nodes.close()

    asyncio.run(serve())


async def _data(nodes: Nodes, name: str, scope: Scope, receive: Receive, send: Send) -> None:
    """One request to the inside of a sandbox; the node checks its token."""
    request = Request(scope, receive)
    answer: Response
    try:
        body = request.stream() if request.method != "GET" else b""
        answer = await _forward(nodes, nodes.of(name), request, body)
    except SandboxGone as error:
        answer = gone(error)
    except StatepoolError as error:
        answer = refused(error)
    await answer(scope, receive, send)


async def _forward(nodes: Nodes, node: Node, request: Request, body: bytes | AsyncIterator[bytes]) -> Response:
    """The node's answer, as it comes.

    Raises:
        SandboxGone: the node is not there any more.
    """
    drop = _HOPS | {"host"} | ({"content-length"} if isinstance(body, bytes) else set())
    # What the client showed at the front's door is the front's; the nodes have a key of their own.
    drop |= {"x-api-key"} | (set() if "e2b-sandbox-id" in request.headers else {"authorization"})
    headers = [(key, value) for key, value in request.headers.items() if key not in drop]
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    asked = nodes.client.build_request(request.method, node.url + path, headers=headers, content=body)
    try:
        answer = await nodes.client.send(asked, stream=True)
    except httpx.TransportError as error:
        raise SandboxGone(f"node {node.name} is not there any more ({type(error).__name__})") from None
    kept = {key: value for key, value in answer.headers.items() if key not in _HOPS}
    return StreamingResponse(
        _passed(answer, node, request.url.path), answer.status_code, kept, background=BackgroundTask(answer.aclose)
    )


async def _passed(answer: httpx.Response, node: Node, path: str) -> AsyncIterator[bytes]:
    """The body. Where a node ends in the middle of a cell, the cell's stream says so."""
    try:
        async for part in answer.aiter_raw():
            yield part
    except httpx.TransportError:
        if path != "/execute":
            raise
        error = {"type": "error", "name": "SandboxGone", "value": f"node {node.name} has ended", "traceback": ""}
        yield json.dumps(error).encode() + b"\n"
    finally:
        await answer.aclose()


async def _all(nodes: Nodes, node: Node, path: str, query: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Every page of a node's list; nothing of a node that has just ended."""
    found: list[dict[str, Any]] = []
    while True:
        more = [*query, ("nextToken", str(len(found))), ("limit", str(_PAGE))]
        try:
            address = f"{node.url}{path}?{urllib.parse.urlencode(more)}"
            answer = await nodes.client.get(address, timeout=PATIENCE_SECONDS)
        except httpx.TransportError:
            return found
        if answer.status_code != 200:
            return found
        found += answer.json()
        if "x-next-token" not in answer.headers:
            return found


async def _text(nodes: Nodes, node: Node, path: str) -> str:
    try:
        return (await nodes.client.get(node.url + path, timeout=PATIENCE_SECONDS)).text
    except httpx.TransportError:
        return ""


def _merged(texts: list[tuple[str, str]]) -> str:
    """Metrics of all nodes, each sample with the name of its node."""
    lines: dict[str, None] = {}
    for name, text in texts:
        for line in text.splitlines():
            metric, _, value = line.rpartition(" ")
            if line.startswith("#"):
                lines[line] = None
            elif metric.endswith("}"):
                lines[f'{metric[:-1]},node="{name}"}} {value}'] = None
            else:
                lines[f'{metric}{{node="{name}"}} {value}'] = None
    return "\n".join(lines) + "\n"


def _field(body: bytes, name: str) -> str:
    """A text of a JSON body; empty where there is none, which the node will name."""
    try:
        found: Mapping[str, Any] = json.loads(body or b"{}")
        return str(found.get(name, ""))
    except (ValueError, AttributeError):
        return ""
