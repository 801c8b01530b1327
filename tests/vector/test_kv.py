"""The index of an attention head's keys, against attention in float64 over all of them."""

from __future__ import annotations

import numpy as np
import pytest

from statepool.core.errors import InvalidRequest
from statepool.vector import KVIndex
from statepool.vector.errors import DimensionError

N, D, GROUP = 3000, 32, 4


def head(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys, and queries that lie elsewhere: few directions, a common offset, longer."""
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(N, D)) * np.geomspace(2.0, 0.2, D) + rng.normal(size=D)
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0]
    queries = (rng.normal(size=(count, 8)) @ rng.normal(size=(8, D)) + 3.0) @ turn
    return keys.astype(np.float32), queries.astype(np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("aware", [False, True])
def test_attention_over_what_was_found_is_attention(aware: bool) -> None:
    keys, queries = head(0, 600)
    values = np.random.default_rng(1).normal(size=(N, 24))
    index = KVIndex.build(keys, queries[:500] if aware else None)
    group = queries[500 : 500 + GROUP]
    exact = group.astype(np.float64) @ keys.astype(np.float64).T
    for budget in (1, 150, N, 2 * N):
        ids = index.search(group, budget)
        assert len(ids) == len(set(ids.tolist())) == min(budget, N)
        assert ids.dtype == np.int64
        best = exact[:, ids].max(axis=0)
        assert (np.diff(best) <= 1e-4 * np.abs(best).max()).all(), "nearest first"
        wanted = softmax(exact[:, ids] / np.sqrt(D)) @ values[ids]
        np.testing.assert_allclose(index.attend(group, values, budget), wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        index.attend(group, values, N, scale=0.01), softmax(exact * 0.01) @ values, rtol=1e-3, atol=1e-5
    )


def test_prefill_queries_lead_to_the_keys_that_count() -> None:
    keys, queries = head(2, 1200)
    known, asked = queries[:1000], queries[1000:]
    truth = np.argsort(-(asked.astype(np.float64) @ keys.T.astype(np.float64)), axis=1)[:, :100]
    budget = N // 20

    def recall(index: KVIndex) -> float:
        found = [index.search(query[None], budget) for query in asked]
        return float(np.mean([len(np.intersect1d(ids, best)) / 100 for ids, best in zip(found, truth, strict=True)]))

    strangers = np.random.default_rng(3).normal(size=known.shape)
    aware, misled = recall(KVIndex.build(keys, known)), recall(KVIndex.build(keys, strangers))
    assert aware >= 0.93
    assert misled < aware - 0.2, "what is recalled must come from the queries that were seen"
    # A fifth of them were seen: votes must be for the query itself, those for the middle of its neighbours find .72.
    assert recall(KVIndex.build(keys, known[:200])) >= 0.88


def test_more_keys_are_looked_at_than_lists_hold() -> None:
    keys, queries = head(4, 5)
    index = KVIndex.build(keys, queries[:2], neighbours=10)
    assert set(index.search(queries[2:3], 100)) == set(index.search(queries[2:3], 20)), "two lists of ten hold no more"
    assert len(index.search(queries[2:3], N)) == N


def test_wrong_arguments_are_named() -> None:
    keys, queries = head(5, 20)
    index = KVIndex.build(keys)
    with pytest.raises(InvalidRequest, match="K: holds no keys"):
        KVIndex.build(keys[:0])
    with pytest.raises(DimensionError, match="Q_prefill"):
        KVIndex.build(keys, queries[:, :5])
    with pytest.raises(InvalidRequest, match="finite"):
        KVIndex.build(keys, np.full((3, D), np.nan))
    with pytest.raises(InvalidRequest, match="budget"):
        index.search(queries, 0)
    with pytest.raises(DimensionError, match="q_group"):
        index.search(queries[:, :3], 5)
    with pytest.raises(InvalidRequest, match="V: has 7 rows"):
        index.attend(queries, np.ones((7, 4)), 5)
