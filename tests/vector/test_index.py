"""An index against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
from tests.vector.synthetic import clustered, distances, recall

from statepool.core.errors import InvalidRequest
from statepool.vector import DimensionError, Index

K = 10


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return clustered(3000, 40, 100)


@pytest.fixture(scope="module")
def index(data: tuple[np.ndarray, np.ndarray]) -> Index:
    found = Index(40, "cos", R=16, build_window=60)
    found.build(data[0])
    return found


@pytest.mark.parametrize("metric", ["cos", "ip", "l2"])
def test_recall_and_distances(metric: str, data: tuple[np.ndarray, np.ndarray]) -> None:
    rows, queries = data
    scales = np.random.default_rng(1).uniform(0.5, 1.5, size=(len(rows), 1)).astype(np.float32)
    rows = rows * scales  # norms differ, or ip and cos would agree
    truth = distances(metric, rows, queries)
    nearest = np.argsort(truth, axis=1)[:, :K]
    index = Index(40, metric, R=16, build_window=60)
    index.build(rows)
    found = [index.search(query, K, 60) for query in queries]
    assert recall([one.ids for one in found], nearest) >= 0.97
    for number, one in enumerate(found):
        np.testing.assert_allclose(one.distances, truth[number, one.ids], rtol=1e-4, atol=1e-5)
        assert (np.diff(one.distances) >= 0).all()
        assert one.stats.ndc < len(rows) / 3, "the graph was not used"
    exact = [index.exact(query, K).ids for query in queries]
    assert recall(exact, nearest) == 1.0


@pytest.mark.parametrize(("dtype", "error"), [("f32", 1e-6), ("f16", 1e-3), ("bf16", 8e-3), ("i8", 1.2e-2)])
def test_stored_precision(dtype: str, error: float, data: tuple[np.ndarray, np.ndarray]) -> None:
    rows, queries = data
    truth = distances("l2", rows, queries)
    index = Index(40, "l2", dtype, R=16, build_window=60)
    index.build(rows)
    for number, query in enumerate(queries):
        found = index.exact(query, 50)
        want = np.sqrt(truth[number, found.ids])
        # A rounding by `error` of each element moves a point by at most error times its norm (i8: its largest).
        moved = error * np.linalg.norm(rows[found.ids], axis=1)
        assert (np.abs(np.sqrt(found.distances) - want) <= moved + 1e-5).all()


def test_same_bits_again_and_from_any_number_of_build_threads(
    index: Index, data: tuple[np.ndarray, np.ndarray]
) -> None:
    rows, queries = data
    other = Index(40, "cos", R=16, build_window=60)
    other.build(rows, threads=3)
    for query in queries:
        one, two = index.search(query, K, 40), other.search(query, K, 40)
        np.testing.assert_array_equal(one.ids, two.ids)
        np.testing.assert_array_equal(one.distances.view(np.int32), two.distances.view(np.int32))
        assert one.stats == two.stats


def test_small_and_empty() -> None:
    index = Index(3, "l2")
    assert len(index.search(np.zeros(3), 5).ids) == 0
    index.build(np.eye(3), ids=np.array([7, 2**62, -1]))
    found = index.search(np.array([0.0, 0.9, 0.0]), 10)
    assert found.ids[0] == 2**62
    assert sorted(found.ids.tolist()) == [-1, 7, 2**62]
    assert not found.truncated


def test_a_deadline_that_passed_marks_the_answer(index: Index, data: tuple[np.ndarray, np.ndarray]) -> None:
    found = index.search(data[1][0], K, 400, deadline_us=0.001)
    assert found.truncated
    assert found.stats.hops < index.search(data[1][0], K, 400).stats.hops


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda ix: ix.search(np.zeros(39)), DimensionError, "39 values"),
        (lambda ix: ix.search(np.zeros((1, 40))), DimensionError, "2 axes"),
        (lambda ix: ix.search(np.full(40, np.nan)), InvalidRequest, "NaN"),
        (lambda ix: ix.search(np.zeros(40)), InvalidRequest, "no direction"),
        (lambda ix: ix.search(np.ones(40), 0), InvalidRequest, "k: 0"),
        (lambda ix: ix.search(np.ones(40), 20, 10), InvalidRequest, "raise ef"),
        (lambda ix: ix.search(np.array(["a"] * 40)), InvalidRequest, "not numeric"),
        (lambda ix: ix.exact(np.ones(40), 0), InvalidRequest, "k: 0"),
        (lambda ix: ix.build(np.zeros((2, 40))), InvalidRequest, "row 0 is zero"),
        (lambda ix: ix.build(np.ones((2, 41))), DimensionError, "41 values"),
        (lambda ix: ix.build(np.ones((2, 40)), ids=[1, 1]), InvalidRequest, "twice"),
        (lambda ix: ix.build(np.ones((2, 40)), ids=["a", "b"]), InvalidRequest, "integers"),
        (lambda ix: Index(0), InvalidRequest, "dim"),
        (lambda ix: Index(4, "hamming"), InvalidRequest, "metric"),
        (lambda ix: Index(4, R=17), InvalidRequest, "multiple of 16"),
    ],
)
def test_bad_input_is_one_clear_error(index: Index, call, kind: type[Exception], says: str) -> None:
    size = len(index)
    with pytest.raises(kind, match=says):
        call(index)
    assert len(index) == size
