"""What sparse attention read for one answer, from the file of ``--trace-selection``."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from statepool.dashboard.tail import Tail

__all__ = ["AttentionTrace"]

_KEPT = 256
"""Requests whose shares are remembered, the latest ones."""


class AttentionTrace:
    """Shares by request and position.

    Args:
        kind: of attention that the server runs.
        path: of the trace, if it writes one.
    """

    def __init__(self, kind: str, path: str | None) -> None:
        self._kind = kind
        self._tail = None if path is None else Tail(Path(path), b'"request"')
        self._lock = threading.Lock()
        self._shares: OrderedDict[str, dict[int, list[float]]] = OrderedDict()

    def of(self, query: dict[str, str]) -> dict[str, Any]:
        """``read`` and ``estimated``: shares of the clusters, per token of the answer, over all layers and heads.

        ``query["request"]`` is the id of an answer. Without a trace only the kind of attention is known.
        """
        with self._lock:
            if self._tail is not None:
                self._take(self._tail)
            tokens = self._shares.get(query.get("request", ""), {})
        order = sorted(tokens)
        return {
            "kind": self._kind,
            "traced": self._tail is not None,
            "read": [round(tokens[at][0] / tokens[at][2], 4) for at in order],
            "estimated": [round(tokens[at][1] / tokens[at][2], 4) for at in order],
        }

    def _take(self, tail: Tail) -> None:
        anew, lines = tail.look()
        if anew:
            self._shares.clear()
        for line in lines:
            # A request of the engine is one sequence of an answer: its id is the answer's with the number behind it.
            name, heads = line["request"].rpartition("-")[0], len(line["read"])
            entry = self._shares.setdefault(name, {}).setdefault(line["position"], [0.0, 0.0, 0.0])
            entry[0] += sum(len(head) for head in line["read"])
            entry[1] += sum(line["estimated"])
            entry[2] += heads * line["clusters"]
        while len(self._shares) > _KEPT:
            self._shares.popitem(last=False)
