"""An HTTP server in a thread of its own, and who may come in: what the small servers of the rooms share."""

from __future__ import annotations

import contextlib
import hmac
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

__all__ = ["HttpServer", "shows_key", "url_of", "uvicorn_server"]

_LAST_BYTES_SECONDS = 3


class HttpServer:
    """Serves an application at a socket that listens; ``core.command.serve`` runs it until a signal comes.

    Its signals stay the process's own. Use it in a ``with`` statement, or ``start`` and ``close`` it.

    Args:
        app: what answers.
        listener: taken over, and closed at the end.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self._listener = listener
        self.url = url_of(listener)
        """Where it answers."""
        self._server = uvicorn_server(app, timeout_graceful_shutdown=_LAST_BYTES_SECONDS)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, name="http")

    def start(self) -> None:
        """Begin; connections wait in the socket until the server takes them."""
        self._thread.start()

    def close(self) -> None:
        """Answer what has been asked, for a few seconds at most, and end."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def url_of(listener: socket.socket) -> str:
    """Where a server at this socket answers."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def uvicorn_server(app: ASGIApp, **settings: Any) -> uvicorn.Server:
    """Uvicorn with ``settings``, quiet, for a caller who keeps the signals and sets ``should_exit``.

    Left to itself it closes connections before their streams have ended, and raises the signal again behind its end.
    """
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, **settings))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    return server


def shows_key(headers: Mapping[str, str], api_key: str) -> bool:
    """Whether a request carries the key, as X-API-Key or as a bearer. Names of ``headers`` are in small letters."""
    given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(given.encode(), api_key.encode())
