"""The HTTP application: routers, failures in the clients' shapes, metrics, health, the chat page."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

import statepool
from statepool.core.errors import StatepoolError, Unavailable
from statepool.serve import messages_routes, rl, sessions, status, tokenize
from statepool.serve.admission import Admission, failure
from statepool.serve.errors import body_for, of_validation
from statepool.serve.openai import containers, routes
from statepool.serve.openai.schema import Shape
from statepool.serve.routing import new_router
from statepool.serve.state import GatewayState, State
from statepool.serve.transport import ClientGoneError, json_response

log = logging.getLogger("statepool.serve")

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CLIENT_CLOSED = 499

router = new_router()


class Health(Shape):
    """The server answers and its engine lives."""

    status: str
    model: str
    pages: dict[str, str]


@router.get("/health", response_model=Health, tags=["operate"])
async def health(state: State) -> Response:
    """200 when requests are accepted, else 503."""
    return json_response({"status": "ok", "model": state.ready_model().id, "pages": state.pages})


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    tags=["operate"],
)
async def metrics(state: State) -> Response:
    """Prometheus' text format."""
    stats, now = state.engine.stats, None
    if state.engine.failure is None and state.model is not None:
        try:
            stats = await state.engine.refresh_stats()
        except Unavailable as error:
            log.warning("metrics are as of the last pulse: %s", error.message)
        now = await status.standing(state)
    return Response(state.metrics.export(stats, now), media_type=_METRICS_TYPE)


def build_app(state: GatewayState) -> FastAPI:
    """The application around ``state``. Starts nothing: the engine is the caller's."""
    app = FastAPI(
        title="statepool",
        version=statepool.__version__,
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(Admission, state=state)],
        redirect_slashes=False,
    )
    app.state.gateway = state
    for each in _routers():
        app.include_router(each)
    if state.config.chat_page is not None:
        _add_page(app, state.config.chat_page)
    app.add_exception_handler(StatepoolError, _on_statepool_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    app.add_exception_handler(Exception, _on_fault)
    describe = app.openapi
    app.openapi = lambda: _described(describe(), state)  # type: ignore[method-assign]
    return app


def _routers() -> tuple[APIRouter, ...]:
    named = (routes, containers, messages_routes, sessions, tokenize, rl, status)
    return (*(module.router for module in named), router)


def _methods_at(path: str) -> list[str]:
    """Every method the API takes at ``path``; the framework names only those of the first route that fits."""
    found: set[str] = set()
    for each in _routers():
        for route in each.routes:
            if isinstance(route, APIRoute) and route.path_regex.match(path):
                found |= route.methods or set()
    return sorted(found)


def _add_page(app: FastAPI, folder: Path) -> None:
    async def page() -> Response:
        return FileResponse(folder / "index.html", headers={"Cache-Control": "no-cache"})

    app.add_api_route("/", page, include_in_schema=False)
    app.mount("/chat", StaticFiles(directory=folder), name="chat")


async def _on_statepool_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, StatepoolError)
    if error.status >= 500 and error.status != 503:
        log.error("%s %s failed: %s", request.method, request.url.path, error.message)
    return failure(request.url.path, error)


async def _on_validation_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    message, param, code = of_validation(error.errors())
    return json_response(body_for(request.url.path, 400, message, param, code), 400)


async def _on_http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, status = request.url.path, error.status_code
    headers = dict(error.headers or {})
    if status == 404:
        message, code = f"there is nothing at {request.method} {path}", "not_found"
    elif status == 405:
        message, code = f"{path} does not take {request.method}", "method_not_allowed"
        headers["Allow"] = ", ".join(_methods_at(path)) or headers.get("Allow", "GET")
    else:
        message, code = str(error.detail), "invalid_request"
    return json_response(body_for(path, status, message, None, code), status, headers)


async def _on_client_gone(_request: HttpRequest, _error: Exception) -> Response:
    # Nobody reads this; the status is for the books.
    return Response(status_code=_CLIENT_CLOSED)


async def _on_fault(request: HttpRequest, error: Exception) -> Response:
    log.error("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    body = body_for(request.url.path, 500, "the server made a mistake; its log says more", None, "internal_error")
    return json_response(body, 500)


def _described(document: dict[str, Any], state: GatewayState) -> dict[str, Any]:
    """The OpenAPI document without FastAPI's own validation shape, which is never sent."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation.get("responses", {}).pop("422", None)
    schemas = document.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if state.config.api_key is not None:
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["key"] = {"type": "http", "scheme": "bearer"}
        document["security"] = [{"key": []}]
    return document
