"""Every failure as a body clients can read: OpenAI's shape, or Anthropic's on its own paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from statepool.core.errors import Overloaded, StatepoolError

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_MOST_CHARS = 500


def speaks_anthropic(path: str) -> bool:
    """Whether ``path`` belongs to the Anthropic dialect."""
    return path.startswith("/v1/messages")


def openai_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}``."""
    kind = _OPENAI_TYPES.get(status, "server_error")
    return {"error": {"message": _presentable(message), "type": kind, "param": param, "code": code}}


def anthropic_body(status: int, message: str) -> dict[str, Any]:
    """``{"type": "error", "error": {type, message}}``."""
    kind = _ANTHROPIC_TYPES.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": _presentable(message)}}


def body_for(path: str, status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body in the dialect of ``path``."""
    return anthropic_body(status, message) if speaks_anthropic(path) else openai_body(status, message, param, code)


def code_of(error: StatepoolError) -> str:
    """The machine-readable code; a missing model has OpenAI's own."""
    return "model_not_found" if error.status == 404 and error.param == "model" else error.code


def headers_of(error: StatepoolError) -> dict[str, str]:
    """Headers a client acts on."""
    if isinstance(error, Overloaded):
        return {"Retry-After": str(max(1, round(error.retry_after)))}
    if error.status == 503:
        return {"Retry-After": "5"}
    return {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}


def of_validation(failures: Sequence[Mapping[str, Any]]) -> tuple[str, str | None, str]:
    """Message, param and code for pydantic's list of failures; the deepest one speaks for all.

    A field that may have several types fails once per type; the failure that went deepest into
    the value is the one its sender meant.
    """
    if not failures:
        return "the request is not valid", None, "invalid_value"
    failure = max(failures, key=lambda entry: len(entry.get("loc", ())))
    if failure.get("type") == "json_invalid":
        detail = failure.get("ctx", {}).get("error", "")
        return f"the body is not valid JSON: {detail}", None, "invalid_json"
    if failure.get("type") == "model_attributes_type" and tuple(failure.get("loc", ())) == ("body",):
        return "the body must be a JSON object, sent with Content-Type: application/json", None, "invalid_json"
    place = [part for part in failure.get("loc", ()) if part not in ("body", "query", "path")]
    param = ".".join(str(part) for part in place if isinstance(part, int) or str(part).isidentifier()) or None
    message = str(failure.get("msg", "is not valid"))
    message = message[:1].lower() + message[1:]
    if failure.get("type") == "missing":
        return f"{param or 'the body'} is missing", param, "missing_required_parameter"
    return f"{param or 'the body'}: {message}", param, "invalid_value"


def _presentable(message: str) -> str:
    """Short enough to read, and without characters that cannot be sent."""
    text = message if len(message) <= _MOST_CHARS else message[:_MOST_CHARS] + "…"
    return text.encode("utf-8", "replace").decode()
