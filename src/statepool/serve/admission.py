"""What happens to every request before a handler sees it: the key, the size of the body, the books.

A plain ASGI layer, because it must not stand between a handler and its client's disconnect.
"""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from statepool.core.errors import PayloadTooLarge, StatepoolError, Unauthorized
from statepool.serve.errors import body_for, code_of, headers_of
from statepool.serve.metrics import HTTP, REJECTED
from statepool.serve.state import GatewayState
from statepool.serve.transport import ARRIVED, json_response

_OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico"})
_DRAIN_LIMIT = 64 << 20
"""A refused body is read up to here, so that its sender gets to read the refusal."""


def failure(path: str, error: StatepoolError) -> Response:
    """``error`` as a response in the dialect of ``path``."""
    body = body_for(path, error.status, error.message, error.param, code_of(error))
    return json_response(body, error.status, headers_of(error))


class Admission:
    """Checks the API key and the size of bodies, counts requests, and notes when they came in."""

    def __init__(self, app: ASGIApp, state: GatewayState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[ARRIVED] = self._state.clock()
        self._state.active += 1
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_key(scope["path"], headers)
            declared = headers.get("content-length", "")
            if declared.isdigit() and int(declared) > self._state.config.max_body_bytes:
                await _discard(receive)
                raise self._too_large()
            await self._app(scope, self._limited(receive), counted)
        except StatepoolError as error:
            await failure(scope["path"], error)(scope, receive, counted)
        finally:
            self._state.active -= 1
            route = getattr(scope.get("route"), "path", "other")
            self._state.metrics.count(HTTP, route, str(status))
            if status in (429, 503):
                self._state.metrics.count(REJECTED, str(status))

    def _check_key(self, path: str, headers: Headers) -> None:
        wanted = self._state.config.api_key
        if wanted is None or path in _OPEN_PATHS or path.startswith("/chat/"):
            return
        if any(path == page or path.startswith(f"{page}/static/") for page in self._state.pages.values()):
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not secrets.compare_digest(given.encode(), wanted.encode()):
            raise Unauthorized("the API key is missing or wrong; send it as 'Authorization: Bearer KEY'")

    def _limited(self, receive: Receive) -> Receive:
        """``receive`` that raises PayloadTooLarge once a body without a declared length grows too large."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._state.config.max_body_bytes:
                    if message.get("more_body"):
                        await _discard(receive)
                    raise self._too_large()
            return message

        return limited

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body has more than {self._state.config.max_body_bytes} bytes")


async def _discard(receive: Receive) -> None:
    seen = 0
    while seen < _DRAIN_LIMIT:
        message = await receive()
        seen += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return
