"""An index as a tool for agents: a query in words, passages out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest

from .index import Index

__all__ = ["RetrievalTool"]

_MOST = 50


class RetrievalTool:
    """Calls an index with what a model wrote.

    Args:
        index: The passages' vectors.
        embed: Text to a vector ``[dim]``.
        texts: Passage by id.
        name: What the model calls it.
        ef: Candidates kept while searching; default the index's.
    """

    def __init__(
        self,
        index: Index,
        embed: Callable[[str], np.ndarray],
        texts: Mapping[int, str],
        *,
        name: str = "search_passages",
        ef: int | None = None,
    ) -> None:
        self._index, self._embed, self._texts, self._ef = index, embed, texts, ef
        self.name = name

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat requests declare it."""
        query = {"type": "string", "description": "What to look for, in plain words."}
        k = {"type": "integer", "minimum": 1, "maximum": _MOST, "description": "How many passages (default 5)."}
        parameters = {
            "type": "object",
            "properties": {"query": query, "k": k},
            "required": ["query"],
            "additionalProperties": False,
        }
        description = "Find the passages closest in meaning to a query."
        return {
            "type": "function",
            "function": {"name": self.name, "description": description, "parameters": parameters},
        }

    def __call__(self, query: str, k: int = 5) -> list[dict[str, Any]]:
        """Passages, nearest first: ``id``, ``text``, ``distance``. One thread, so the same call gives the same answer.

        Raises:
            InvalidRequest: an empty query, or ``k`` outside 1 to 50.
        """
        if not isinstance(query, str) or not query.strip():
            raise InvalidRequest("query: must be text", param="query")
        if not isinstance(k, int) or not 1 <= k <= _MOST:
            raise InvalidRequest(f"k: {k!r} is no integer from 1 to {_MOST}", param="k")
        found = self._index.search(self._embed(query), k, None if self._ef is None else max(self._ef, k))
        pairs = zip(found.ids.tolist(), found.distances.tolist(), strict=True)
        return [{"id": one, "text": self._texts[one], "distance": distance} for one, distance in pairs]
