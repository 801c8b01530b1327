"""An index as a tool for agents: a query in words, passages out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest

from .filters import GRAMMAR
from .searching import Filter, Searching

__all__ = ["RetrievalTool"]

_MOST = 50


class RetrievalTool:
    """Calls an index with what a model wrote.

    Args:
        index: The passages' vectors: an ``Index``, a ``LiveIndex``, or a ``Snapshot`` for answers that can be repeated.
        embed: Text to a vector ``[dim]``.
        texts: Passage by id.
        name: What the model calls it.
        ef: Candidates kept while searching. Many by default: a millisecond is nothing to a model that waits, a missed
            passage is.
    """

    def __init__(
        self,
        index: Searching,
        embed: Callable[[str], np.ndarray],
        texts: Mapping[Any, str],
        *,
        name: str = "search_passages",
        ef: int = 256,
    ) -> None:
        self._index, self._embed, self._texts, self._ef = index, embed, texts, ef
        self.name = name

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat requests declare it."""
        query = {"type": "string", "description": "What to look for, in plain words."}
        k = {"type": "integer", "minimum": 1, "maximum": _MOST, "description": "How many passages (default 5)."}
        properties: dict[str, Any] = {"query": query, "k": k}
        columns = self._index.settings.columns
        if columns:
            known = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
            properties["filter"] = {"type": "object", "minProperties": 1, "description": f"{GRAMMAR} Columns: {known}."}
        parameters = {
            "type": "object",
            "properties": properties,
            "required": ["query"],
            "additionalProperties": False,
        }
        description = "Find the passages closest in meaning to a query."
        return {
            "type": "function",
            "function": {"name": self.name, "description": description, "parameters": parameters},
        }

    def __call__(self, query: str, k: int = 5, filter: Filter | None = None) -> list[dict[str, Any]]:  # noqa: A002
        """Passages, nearest first: ``id``, ``text``, ``distance``. One thread, so the same call gives the same answer.

        Raises:
            InvalidRequest: an empty query, or ``k`` outside 1 to 50.
            FilterError: a filter with an unknown column or a value of another type.
        """
        if not isinstance(query, str) or not query.strip():
            raise InvalidRequest("query: must be text", param="query")
        if not isinstance(k, int) or not 1 <= k <= _MOST:
            raise InvalidRequest(f"k: {k!r} is no integer from 1 to {_MOST}", param="k")
        found = self._index.search(self._embed(query), k, max(self._ef, k), filter=filter)
        pairs = zip(found.ids.tolist(), found.distances.tolist(), strict=True)
        return [{"id": one, "text": self._texts[one], "distance": distance} for one, distance in pairs]
