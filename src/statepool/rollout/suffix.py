"""Drafts from the texts of a group: what followed the longest context that a text shares with itself or its siblings.

``GroupTree`` is native; ``PlainTree`` is its twin, which looks at every place. The places that agree longest with the
end of a text are the leaves below the node where a suffix tree would end its match, and the tokens behind them,
counted, its children: a draft follows the most frequent child, or several (``paths``) as a beam (Seer, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any, TypeAlias

import numpy as np

from statepool.core.errors import InvalidConfig

try:
    from statepool.native import _suffix  # type: ignore[attr-defined]  # compiled: no source for mypy to find
except ImportError as error:
    _suffix = None
    _reason = str(error)

__all__ = ["Draft", "PlainTree", "exact_tree", "group_tree"]

Draft: TypeAlias = tuple[list[int], list[int], list[float], int]
"""Tokens, the parent of each (-1: the text), the chance that it is reached, and the length of the match."""

ORDERS = (4, 2)
"""Contexts that are looked up; a match is at least as long as the second."""


def group_tree(depth: int = 24, places: int = 16, budget: int = 1 << 26) -> Any:
    """An empty tree; native where it is built.

    Args:
        depth: longest context compared.
        places: most places kept of those that agree longest.
        budget: bytes, above which the oldest text is forgotten.
    """
    return PlainTree(depth, places) if _suffix is None else _suffix.GroupTree(depth, places, budget)


def exact_tree(depth: int = 24) -> Any:
    """A trie with the answers of ArcticInference's suffix tree, for comparisons.

    Raises:
        InvalidConfig: the native module is not built.
    """
    if _suffix is None:
        raise InvalidConfig(f"the exact tree is native only, and the module is missing: {_reason}", param="tree")
    return _suffix.ExactTree(depth)


class PlainTree:
    """The twin of the native tree: no index, no cursor, no limit of memory."""

    def __init__(self, depth: int = 24, places: int = 16) -> None:
        self._depth = depth
        self._places = places
        self._texts: dict[int, list[int]] = {}
        self._recent: list[tuple[int, int]] = []

    @property
    def texts(self) -> int:
        """How many texts are here."""
        return len(self._texts)

    def append(self, text: int, tokens: Sequence[int] | np.ndarray) -> None:
        """Add tokens to a text, which begins with its first."""
        known = self._texts.setdefault(text, [])
        for token in tokens:
            known.append(int(token))
            self._recent.append((text, len(known)))

    def length(self, text: int) -> int:
        """Tokens of a text; 0 if it is not here."""
        return len(self._texts.get(text, ()))

    def remove(self, text: int) -> None:
        """Forget a text."""
        self._texts.pop(text, None)
        self._recent = [place for place in self._recent if place[0] != text]

    def draft(self, text: int, budget: int, paths: int = 1, least: float = 0.1) -> Draft:
        """Tokens that may follow, by falling chance; see ``Draft``."""
        found, match = self._match(text)
        tokens: list[int] = []
        parents: list[int] = []
        chances: list[float] = []
        heap = [(-1.0, 0, -1, found)]
        made = 0
        while heap and len(tokens) < budget:
            negative, _, parent, places = heappop(heap)
            counts: dict[int, int] = {}
            for name, at in places:
                if at < len(self._texts[name]):
                    token = self._texts[name][at]
                    counts[token] = counts.get(token, 0) + 1
            live = sum(counts.values())
            for token, count in sorted(counts.items(), key=lambda entry: -entry[1]):
                chance = float(np.float32(np.float32(np.float32(-negative) * np.float32(count)) / np.float32(live)))
                if chance < least or len(heap) >= paths or len(tokens) >= budget:
                    break
                tokens.append(token)
                parents.append(parent)
                chances.append(chance)
                made += 1
                behind = [
                    (name, at + 1)
                    for name, at in places
                    if at < len(self._texts[name]) and self._texts[name][at] == token
                ]
                heappush(heap, (-chance, made, len(tokens) - 1, behind))
        return tokens, parents, chances, match

    def _match(self, text: int) -> tuple[list[tuple[int, int]], int]:
        own = self._texts.get(text, [])
        for order in ORDERS:
            best: list[tuple[int, int]] = []
            longest = 0
            for name, at in reversed(self._recent):
                other = self._texts[name]
                if at >= len(other):
                    continue
                agree = 0
                while agree < min(self._depth, at, len(own)) and own[-1 - agree] == other[at - 1 - agree]:
                    agree += 1
                if agree >= order and agree >= longest:
                    if agree > longest:
                        best, longest = [], agree
                    best.append((name, at))
            if longest:
                return best[: self._places], longest
        return [], 0
