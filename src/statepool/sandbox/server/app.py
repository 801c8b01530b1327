"""The server's application: control plane and data plane behind one address, told apart by the header that names a
sandbox.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from statepool.core.errors import StatepoolError
from statepool.sandbox.errors import SandboxGone
from statepool.sandbox.server import cells, control, envd, folders
from statepool.sandbox.server.doors import LOCKED, gone, locked
from statepool.sandbox.server.registry import Registry
from statepool.sandbox.server.status import status

__all__ = ["create_app"]

_THREADS = 256


def create_app(registry: Registry, *, api_key: str | None = None) -> ASGIApp:
    """The application; with ``api_key`` every request of the control plane must carry it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        from anyio import to_thread

        to_thread.current_default_thread_limiter().total_tokens = _THREADS
        yield
        registry.close_all()

    async def health(_: Request) -> Response:
        pool = registry.pool
        return JSONResponse({"status": "ok", "driver": pool.driver, "busy": pool.busy(), "most": pool.most})

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(_metrics(registry), media_type="text/plain; version=0.0.4")

    async def standing(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(status, registry))

    async def failed(_: Request, error: Exception) -> Response:
        assert isinstance(error, StatepoolError)
        return control.refused(error)

    operate = {"/health": health, "/metrics": metrics, "/status": standing}
    own = [Route(path, answer) for path, answer in operate.items()]
    routes = [*own, *control.routes(registry), cells.fusion(registry)]
    plane = Starlette(routes=routes, lifespan=lifespan, exception_handlers={StatepoolError: failed})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope.get("headers", ())}
        if scope["type"] == "http" and "e2b-sandbox-id" in headers:
            await _data(registry, headers, scope, receive, send)
            return
        if scope["type"] == "http" and locked(scope["path"], headers, api_key):
            await LOCKED(scope, receive, send)
            return
        await plane(scope, receive, send)

    return app


async def _data(registry: Registry, headers: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
    """One request to the inside of a sandbox."""
    request = Request(scope, receive)
    path: str = scope["path"]
    try:
        record = registry.get(headers["e2b-sandbox-id"])
        if path != "/files" or request.query_params.get("signature") is None:
            record.check(headers.get("x-access-token") or headers.get("e2b-traffic-access-token"))
        if record.sandbox.paused:
            raise SandboxGone("it is paused")
        answer: Any
        if path.startswith(("/process.", "/filesystem.")):
            make = envd.application if path.startswith("/process.") else folders.application
            answer = record.services.setdefault(path.split(".", maxsplit=1)[0], None) or make(record.sandbox)
            record.services[path.split(".", maxsplit=1)[0]] = answer
        elif headers.get("e2b-sandbox-port") == "49999" or path.startswith(("/execute", "/contexts")):
            answer = await cells.interpreter(record, request)
        elif path == "/files":
            answer = await folders.transfer(record, request)
        elif path == "/health":
            answer = Response(status_code=204)
        else:
            answer = JSONResponse({"code": 404, "message": f"no such path: {path}"}, 404)
    except SandboxGone as error:
        answer = gone(error)
    except StatepoolError as error:
        answer = control.refused(error)
    await answer(scope, receive, send)


def _metrics(registry: Registry) -> str:
    """Counters and gauges in Prometheus' text format."""
    pool = registry.pool
    lines = []
    for name, value in pool.counters.items():
        lines += [f"# TYPE statepool_sandbox_{name}_total counter", f"statepool_sandbox_{name}_total {value}"]
    lines += ["# TYPE statepool_sandbox_slots gauge", f'statepool_sandbox_slots{{state="busy"}} {pool.busy()}']
    lines += [
        f'statepool_sandbox_slots{{state="waiting",template="{name}"}} {count}'
        for name, count in pool.waiting().items()
    ]
    states = [record.state for record in registry.records()]
    lines += ["# TYPE statepool_sandbox_live gauge"]
    lines += [f'statepool_sandbox_live{{state="{state}"}} {states.count(state)}' for state in ("running", "paused")]
    return "\n".join(lines) + "\n"
