"""A running server, asked over HTTP with the standard library alone."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from http.client import HTTPResponse
from typing import Any

from statepool.core.errors import InvalidConfig, Unavailable

__all__ = ["get_json", "open_url"]

_TIMEOUT_SECONDS = 10.0


def open_url(
    url: str,
    path: str,
    body: bytes | None = None,
    *,
    api_key: str | None = None,
    timeout_s: float | None = _TIMEOUT_SECONDS,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> HTTPResponse:
    """The answer of the server at ``url`` to a GET of ``path``, or to a POST of ``body`` (JSON); close it.

    ``method`` and ``headers`` say otherwise; ``timeout_s`` None waits for ever.

    Raises:
        InvalidConfig: ``url`` is no address. OSError: nobody answers there; HTTPError, which is one, where it refuses.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidConfig(f"url must start with http:// or https://, got {url!r}", param="url")
    sent = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    sent |= headers or {}
    request = urllib.request.Request(url.rstrip("/") + path, body, sent, method=method)  # noqa: S310  (scheme was checked)
    answer: HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310
    return answer


def get_json(url: str, path: str, api_key: str | None = None) -> Any:
    """What ``path`` of the server at ``url`` says.

    Raises:
        InvalidConfig: not an address. Unavailable: nobody answers there, or not with JSON.
    """
    try:
        with open_url(url, path, api_key=api_key) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", error)  # urllib wraps what the system said
        why = getattr(cause, "strerror", None) or cause
        raise Unavailable(f"no server answers at {url.rstrip('/')}{path}: {why}") from None
