"""Keys of an attention head as an index: which of them a query should look at, and attention over those alone.

Attention queries lie elsewhere than keys, so a graph that links near keys leads them badly. With queries of the prefill
the index holds for each of them its true nearest keys, and a new query goes from its nearest prefill queries to their
keys: the bipartite half of RoarGraph (arXiv 2408.08933) and RetrievalAttention (arXiv 2409.10516). Scores are linear in
the query, so what near queries say of a key is weighted as they would be to make the new query of them. Without queries
of the prefill, it searches the graph of the keys under the inner product, lifted to one norm.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from statepool.core.errors import InvalidRequest

from .check import floats, same_width, within
from .index import Index

__all__ = ["KVIndex"]

BLOCK = 1 << 24
"""Scores held at once while the nearest keys of prefill queries are looked up."""

NEAR = 64
"""Prefill queries that vote for a new one."""

RIDGE = 0.3
"""Of the mean moment of the near queries: lists are short, so their votes are added up to a query only roughly."""


class KVIndex:
    """Keys of one head, and what tells which of them matter to a query. Made by ``build``; it does not change."""

    def __init__(
        self, keys: np.ndarray, graph: Index, lists: np.ndarray | None = None, asked: np.ndarray | None = None
    ) -> None:
        self._keys, self._graph, self._lists, self._asked = keys, graph, lists, asked

    @classmethod
    def build(
        cls,
        K: np.ndarray,  # noqa: N803
        Q_prefill: np.ndarray | None = None,  # noqa: N803
        *,
        neighbours: int = 256,
        seed: int = 0,
    ) -> Self:
        """Index keys ``[n, d]``.

        Args:
            K: Keys of one head, any float dtype.
            Q_prefill: Queries of the same head ``[m, d]``, of all query heads that share it; they need not be many.
            neighbours: Keys kept for each of them.
            seed: Order in which the graph is built.

        Raises:
            DimensionError: ``K`` or ``Q_prefill`` has the wrong shape.
            InvalidRequest: no keys, ``neighbours`` below 1, or values that are not finite.
        """
        keys = floats("K", K, 2)
        within("neighbours", neighbours, 1, 2**31)
        if not len(keys):
            raise InvalidRequest("K: holds no keys; give at least one", param="K")
        if Q_prefill is None:
            graph = Index(keys.shape[1], "ip", seed=seed)
            graph.build(keys)
            return cls(keys, graph)
        queries = floats("Q_prefill", Q_prefill, 2)
        same_width("Q_prefill", queries.shape[1], keys.shape[1])
        if not (np.isfinite(keys).all() and np.isfinite(queries).all()):
            raise InvalidRequest("K and Q_prefill: hold NaN or infinity; every value must be finite", param="K")
        most, step = min(neighbours, len(keys)), max(1, BLOCK // len(keys))
        graph = Index(keys.shape[1], "cos", seed=seed)
        graph.build(queries)
        lists = [_nearest(queries[at : at + step] @ keys.T, most) for at in range(0, len(queries), step)]
        return cls(keys, graph, np.concatenate(lists), queries / np.linalg.norm(queries, axis=1, keepdims=True))

    def __len__(self) -> int:
        return len(self._keys)

    def search(self, q_group: np.ndarray, budget: int) -> np.ndarray:
        """Ids of at most ``budget`` keys, int64, by their largest inner product with any query of the group.

        Every key that is scored is answered, so ``budget`` is also how many keys are read, besides those that a search
        of the key graph passes when there were no prefill queries.

        Args:
            q_group: ``[g, d]``, the queries whose heads share these keys.
            budget: Most keys.

        Raises:
            DimensionError: ``q_group`` is not ``[g, d]``.
            InvalidRequest: ``budget`` below 1.
        """
        queries = floats("q_group", q_group, 2)
        same_width("q_group", queries.shape[1], self._keys.shape[1])
        within("budget", budget, 1, 2**31)
        if budget >= len(self):
            found = np.arange(len(self))
        elif self._lists is None or self._asked is None:
            found = self._by_keys(queries, budget)
        else:
            found = self._by_queries(queries, budget, self._lists, self._asked)
        best = (queries @ self._keys[found].T).max(axis=0)
        return found[np.argsort(-best, kind="stable")].astype(np.int64)

    def _by_keys(self, queries: np.ndarray, budget: int) -> np.ndarray:
        ranked = [self._graph.search(query, budget, max(64, budget)).ids for query in queries]
        return _in_turn(ranked, budget)

    def _by_queries(self, queries: np.ndarray, budget: int, lists: np.ndarray, asked: np.ndarray) -> np.ndarray:
        wanted = min(NEAR, len(lists))
        while True:
            nearest = [self._graph.search(query, wanted, 2 * wanted).ids for query in queries]
            weights = [_weights(query, asked[near]) for query, near in zip(queries, nearest, strict=True)]
            # A key counts for every near query that has it, more if high up in its list.
            places = np.outer(np.concatenate(weights), np.arange(lists.shape[1], 0, -1))
            met, index = np.unique(lists[np.concatenate(nearest)], return_inverse=True)
            votes = np.bincount(index.ravel(), places.ravel())
            found = met[np.argsort(-votes, kind="stable")[:budget]]
            if len(found) >= budget or wanted == len(lists):
                return found
            wanted = min(2 * wanted, len(lists))

    def attend(self, q_group: np.ndarray, V: np.ndarray, budget: int, scale: float | None = None) -> np.ndarray:  # noqa: N803
        """Attention of every query of ``q_group`` ``[g, d]`` over the keys that ``search`` finds: float32 ``[g, dv]``.

        Args:
            q_group: Queries whose heads share these keys.
            V: Values ``[n, dv]``.
            budget: Keys to look at.
            scale: Of the inner products; default ``1 / sqrt(d)``.

        Raises:
            DimensionError: ``q_group`` is not ``[g, d]``, or ``V`` is no matrix.
            InvalidRequest: ``V`` has another number of rows than there are keys, or ``budget`` is below 1.
        """
        values, queries = floats("V", V, 2), floats("q_group", q_group, 2)
        if len(values) != len(self):
            raise InvalidRequest(f"V: has {len(values)} rows; there are {len(self)} keys", param="V")
        found = self.search(queries, budget)
        scores = (queries @ self._keys[found].T) * (self._keys.shape[1] ** -0.5 if scale is None else scale)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        answer: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)) @ values[found]
        return answer


def _weights(query: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Of near queries, unit vectors ``[m, d]``, by how much each counts for this one, float64 ``[m]``.

    Local linear regression: the nearer the more, and then changed as little as makes their mean the query itself.
    """
    unit, rows = query.astype(np.float64) / np.linalg.norm(query), near.astype(np.float64)
    weights = (1e-3 + np.maximum(0, 1 - rows @ unit)) ** -2.0
    weights /= weights.sum()
    moments = (rows.T * weights) @ rows
    ridge = RIDGE * np.trace(moments) / len(unit) * np.eye(len(unit))
    changed: np.ndarray = weights * (1 + rows @ np.linalg.solve(moments + ridge, unit - weights @ rows))
    return changed


def _nearest(scores: np.ndarray, most: int) -> np.ndarray:
    """Columns of the ``most`` largest of every row, largest first, int32."""
    best = np.argpartition(-scores, most - 1, axis=1)[:, :most]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    ordered: np.ndarray = np.take_along_axis(best, order, axis=1)
    return ordered.astype(np.int32)


def _in_turn(ranked: list[np.ndarray], most: int) -> np.ndarray:
    """The first of every ranking, then the second …, each id once, at most ``most``."""
    longest = max(map(len, ranked))
    padded = np.full((longest, len(ranked)), -1, dtype=np.int64)
    for column, ids in enumerate(ranked):
        padded[: len(ids), column] = ids
    flat = padded.ravel()
    flat = flat[flat >= 0]
    _, first = np.unique(flat, return_index=True)
    kept: np.ndarray = flat[np.sort(first)[:most]]
    return kept
