"""How handlers are declared: bodies parsed strictly, every failure in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from statepool.core.errors import StatepoolError
from statepool.serve.anthropic_schema import AnthropicError
from statepool.serve.openai.schema import ErrorBody

_FAILURES = {
    400: "A field is missing, of the wrong type or out of range.",
    401: "The API key is missing or wrong.",
    404: "The named model or object does not exist.",
    413: "The body is too large.",
    429: "The queue is full; see Retry-After.",
    500: "A fault of the server.",
    503: "The server is loading, draining, or lost its engine.",
}


def failures(body: type[ErrorBody] | type[AnthropicError] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of every failure, with ``body`` as their shape."""
    return {status: {"model": body, "description": text} for status, text in _FAILURES.items()}


def streaming(model: type[Any]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entry of a call that answers with ``model`` or, with ``stream``, with server-sent events."""
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: {"model": model, "content": events, "description": "The answer, or a stream of events."}}


class StrictJsonRequest(HttpRequest):
    """A request whose JSON must be valid: no NaN, no lone surrogates, no bytes that are not UTF-8."""

    async def json(self) -> Any:
        """The parsed body.

        Raises:
            json.JSONDecodeError: it is not valid JSON.
        """
        return orjson.loads(await self.body())


class StrictJsonRoute(APIRoute):
    """A route that reads its body as StrictJsonRequest does."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        """The handler, given a strict request."""
        handler = super().get_route_handler()

        async def strict(request: HttpRequest) -> Response:
            try:
                return await handler(StrictJsonRequest(request.scope, request.receive))
            except HTTPException as error:
                # The framework hides what went wrong while the body was read.
                if isinstance(error.__cause__, StatepoolError):
                    raise error.__cause__ from None
                raise

        return strict


def new_router() -> APIRouter:
    """A router for endpoints that fail in OpenAI's shape."""
    return APIRouter(route_class=StrictJsonRoute, responses=failures())


def new_anthropic_router() -> APIRouter:
    """A router for endpoints that fail in Anthropic's shape."""
    return APIRouter(route_class=StrictJsonRoute, responses=failures(AnthropicError))
