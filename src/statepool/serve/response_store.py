"""Answers of ``/v1/responses`` that later calls may continue."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from statepool.core.errors import NotFound


@dataclass(frozen=True)
class StoredResponse:
    """A finished response: its body, the messages that led to it, its own included, and the container of its code."""

    body: dict[str, Any]
    messages: list[dict[str, Any]]
    container_id: str | None = None


class ResponseStore:
    """The last ``limit`` responses, in memory; the oldest goes first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, response: StoredResponse) -> None:
        """Keep a response under its id."""
        self._responses[response.body["id"]] = response
        while len(self._responses) > self._limit:
            self._responses.popitem(last=False)

    def get(self, name: str, param: str = "response_id") -> StoredResponse:
        """A stored response.

        Raises:
            NotFound: it never existed, was not stored, or had to make room.
        """
        found = self._responses.get(name)
        if found is None:
            raise NotFound(f"response {name!r} is not stored here", param=param)
        return found

    def drop(self, name: str) -> None:
        """Forget a response.

        Raises:
            NotFound: there is none.
        """
        self.get(name)
        del self._responses[name]
