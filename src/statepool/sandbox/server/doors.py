"""What the server and the front of several say at their doors: who may come in, and that a sandbox has gone."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from statepool.sandbox.errors import SandboxGone
from statepool.web import shows_key

__all__ = ["LOCKED", "gone", "locked"]

LOCKED = JSONResponse({"code": 401, "message": "X-API-Key: missing or wrong"}, 401)
_OPEN_PATHS = ("/health",)


def locked(path: str, headers: Mapping[str, str], api_key: str | None) -> bool:
    """Whether a request of the control plane lacks the key. Names of ``headers`` are in small letters."""
    if not api_key or path in _OPEN_PATHS:
        return False
    return not shows_key(headers, api_key)


def gone(error: SandboxGone) -> JSONResponse:
    """The answer of the data plane. 502 is how E2B's proxy says that a sandbox has gone; its SDK reads the words."""
    if error.param is None:
        return JSONResponse({"code": 502, "message": f"The sandbox was not found: {error.message}"}, 502)
    return JSONResponse({"code": 404, "message": error.message}, 404)
