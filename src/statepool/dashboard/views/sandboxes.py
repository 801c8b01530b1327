"""The sandbox server: slots, sandboxes and who was forked from whom, memory of their own and shared."""

from __future__ import annotations

from typing import Any

from statepool.web import get_json

__all__ = ["sandboxes"]


def sandboxes(url: str) -> dict[str, Any]:
    """What ``GET /status`` of a sandbox server answers.

    Raises:
        Unavailable: it does not answer.
    """
    found: dict[str, Any] = get_json(url, "/status")
    return {"url": url, **found}
