"""A running server, asked over HTTP with the standard library alone."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from statepool.core.errors import InvalidConfig, Unavailable

__all__ = ["get_json", "headers"]

_TIMEOUT_SECONDS = 10


def headers(api_key: str | None) -> dict[str, str]:
    """What every request to a server carries."""
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})


def get_json(url: str, path: str, api_key: str | None = None) -> Any:
    """What ``path`` of the server at ``url`` says.

    Raises:
        InvalidConfig: not an address. Unavailable: nobody answers there, or not with JSON.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidConfig(f"url must start with http:// or https://, got {url!r}", param="url")
    where = url.rstrip("/") + path
    request = urllib.request.Request(where, headers=headers(api_key))  # noqa: S310  (scheme was checked)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise Unavailable(f"no server answers at {where}: {error}") from None
