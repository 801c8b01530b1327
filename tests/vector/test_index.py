"""An index against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
from tests.vector.synthetic import clustered, distances, recall

from statepool.core.errors import InvalidRequest, NotFound
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
        (lambda ix: ix.build(np.ones((2, 40)), ids=[0.5, 1.5]), InvalidRequest, "integers"),
        (lambda ix: ix.build(np.ones((2, 40)), ids=["a", 3]), InvalidRequest, "2 texts"),
        (lambda ix: ix.build(np.ones((2, 40)), ids=["a", "a"]), InvalidRequest, "twice"),
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


def test_batches_and_ranges_against_brute_force(index: Index, data: tuple[np.ndarray, np.ndarray]) -> None:
    rows, queries = data
    truth = distances("cos", rows, queries)
    for workers in (1, 3):
        for query, found in zip(queries, index.search_batch(queries, K, 60, workers=workers), strict=True):
            np.testing.assert_array_equal(found.ids, index.search(query, K, 60).ids)
    found_rows = wanted_rows = 0
    for number, query in enumerate(queries):
        radius = float(np.sort(truth[number])[200])
        found = index.range_search(query, radius)
        want = set(np.flatnonzero(truth[number] <= radius).tolist())
        assert (found.distances <= radius).all()
        found_rows += len(want & set(found.ids.tolist()))
        wanted_rows += len(want)
    assert found_rows / wanted_rows >= 0.97
    assert len(index.range_search(queries[0], -1.0).ids) == 0
    assert len(index.range_search(queries[0], 3.0).ids) == len(rows)


def test_calibrated_ef_reaches_its_recall(index: Index, data: tuple[np.ndarray, np.ndarray]) -> None:
    rows, queries = data
    table = index.calibrate(queries[:50], (0.9, 0.99))
    nearest = np.argsort(distances("cos", rows, queries[:50]), axis=1)[:, :K]
    for target, ef in table.items():
        assert recall([index.search(query, K, ef).ids for query in queries[:50]], nearest) >= target - 0.005
    assert K <= table[0.9] <= table[0.99]


@pytest.mark.parametrize("metric", ["cos", "ip", "l2"])
@pytest.mark.parametrize(("dtype", "error"), [("f32", 1e-6), ("f16", 1e-3), ("bf16", 8e-3), ("i8", 1.2e-2)])
def test_get_and_contains(metric: str, dtype: str, error: float, data: tuple[np.ndarray, np.ndarray]) -> None:
    rows = data[0][:200]
    index = Index(40, metric, dtype, R=16, build_window=32)
    index.build(rows, ids=np.arange(200) + 1000)
    want = rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric == "cos" else rows
    largest = np.abs(want).max() if metric != "ip" else max(np.abs(want).max(), np.linalg.norm(want, axis=1).max())
    np.testing.assert_allclose(index.get([1003, 1000, 1199]), want[[3, 0, 199]], atol=error * largest, rtol=0)
    assert 1199 in index
    assert 3 not in index
    assert index.get([]).shape == (0, 40)
    with pytest.raises(NotFound, match="3 is not in the index"):
        index.get([1000, 3])


def reached(index: Index) -> np.ndarray:
    """Which rows a walk along the links finds from the entries."""
    _, links, entries, _ = index._core.arrays()
    seen = np.zeros(len(index), dtype=bool)
    front = np.asarray(entries, dtype=np.int64)
    while len(front):
        seen[front] = True
        following = np.unique(links[front])
        following = following[following < len(index)]
        front = following[~seen[following]]
    return seen


@pytest.mark.parametrize("copies", [1, 2, 50, 4000, 5000])
@pytest.mark.parametrize("metric", ["cos", "ip", "l2"])
def test_every_row_is_led_to_however_many_are_equal(copies: int, metric: str) -> None:
    rng = np.random.default_rng(copies)
    rows = rng.standard_normal((5000, 24)).astype(np.float32)
    rows[:copies] = rows[0]
    index = Index(dim=24, metric=metric)
    index.build(rows)
    assert reached(index).all()


def test_copies_of_a_row_hide_no_other_rows() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((5000, 24)).astype(np.float32)
    queries = rng.standard_normal((100, 24)).astype(np.float32)
    rows[1000:4000] = rows[0]
    index = Index(dim=24, metric="l2")
    index.build(rows)
    found = [index.search(query, 10, ef=64).distances for query in queries]
    true = np.sort(((queries[:, None] - rows[None]) ** 2).sum(2), axis=1)[:, :10]
    assert np.mean(np.abs(found - true) < 1e-3) >= 0.95
