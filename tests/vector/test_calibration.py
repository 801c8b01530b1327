"""A search that is asked for a recall, against NumPy over all rows."""

from __future__ import annotations

import numpy as np
import pytest
from tests.vector.synthetic import clustered, distances, recall

from statepool.core.errors import InvalidRequest
from statepool.vector import Index, LiveIndex
from statepool.vector.calibration import queries_like_rows

K = 10


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rows, queries = clustered(4000, 48, 200)
    return rows, queries


def built(rows: np.ndarray, sealed: bool = False, metric: str = "cos") -> Index:
    index = Index(48, metric, R=16, build_window=40)
    index.build(rows)
    if sealed:
        index.seal()
    return index


@pytest.mark.parametrize("metric", ["cos", "l2", "ip"])
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_a_search_finds_the_recall_it_is_asked_for(
    data: tuple[np.ndarray, np.ndarray], sealed: bool, metric: str
) -> None:
    rows, queries = data
    index = built(rows, sealed, metric)
    nearest = np.argsort(distances(metric, rows, queries), axis=1)[:, :K]
    widths = []
    for wanted in (0.8, 0.97):
        found = [index.search(query, K, recall=wanted) for query in queries]
        # 2,000 answers: a deviation of the sample is under .01 at .8 and .004 at .97.
        assert recall([one.ids for one in found], nearest) >= wanted - 0.03
        widths.append(index._width(K, None, wanted))
    assert K <= widths[0] <= widths[1] < 1000, "it is no scan"


def test_the_queries_are_no_rows_and_the_same_every_time(data: tuple[np.ndarray, np.ndarray]) -> None:
    index = built(data[0])
    made = queries_like_rows(index)
    assert made.shape == (128, 48)
    np.testing.assert_array_equal(made, queries_like_rows(index))
    nearest = distances("cos", index.get(range(4000)), made).min(axis=1)
    assert np.median(nearest) > 1e-3


def test_a_calibration_is_kept_until_the_rows_are_others(data: tuple[np.ndarray, np.ndarray], monkeypatch) -> None:
    rows, queries = data
    asked = []
    calibrate = Index.calibrate
    monkeypatch.setattr(Index, "calibrate", lambda self, *rest: asked.append(1) or calibrate(self, *rest))
    index = built(rows)
    for _ in range(3):
        index.search(queries[0], K, recall=0.9)
    assert len(asked) == 1
    index.search(queries[0], K + 1, recall=0.9)
    assert len(asked) == 2
    index.seal()
    index.search(queries[0], K, recall=0.9)
    assert len(asked) == 3


def test_a_changing_index_calibrates_anew_when_it_has_grown(data: tuple[np.ndarray, np.ndarray]) -> None:
    rows, queries = data
    index = LiveIndex.over(built(rows[:2000]))
    index.search(queries[0], K, recall=0.9)
    assert index._widths[K, 0.9][1] == 2000
    index.add(rows[2000:2100], range(2000, 2100))
    index.search(queries[0], K, recall=0.9)
    assert index._widths[K, 0.9][1] == 2000
    index.add(rows[2100:], range(2100, 4000))
    nearest = np.argsort(distances("cos", rows, queries), axis=1)[:, :K]
    found = [index.search(query, K, recall=0.9).ids for query in queries]
    assert index._widths[K, 0.9][1] == 4000
    assert recall(found, nearest) >= 0.87


@pytest.mark.parametrize("among", [None, {"even": 1}])
def test_answers_come_with_their_vectors(data: tuple[np.ndarray, np.ndarray], among: dict | None) -> None:
    rows, queries = data
    index = Index(48, "l2", columns={"even": "i64"})
    index.build(rows[:500], [f"row {n}" for n in range(500)], columns={"even": [n % 2 for n in range(500)]})
    live = LiveIndex.over(index)
    with live.snapshot() as snapshot:
        for one in (index, live, snapshot):
            found = one.search(queries[0], K, filter=among, return_vectors=True)
            assert found.vectors is not None
            np.testing.assert_array_equal(found.vectors, rows[[int(name[4:]) for name in found.ids]])
            assert one.search(queries[0], K, filter=among).vectors is None


def test_a_recall_that_makes_no_sense_is_one_clear_error(data: tuple[np.ndarray, np.ndarray]) -> None:
    index = built(data[0][:200])
    for wrong in (0.0, 1.0, -1.0, 2.0, float("nan")):
        with pytest.raises(InvalidRequest, match="recall"):
            index.search(data[1][0], K, recall=wrong)
    with pytest.raises(InvalidRequest, match="without ef"):
        index.search(data[1][0], K, 64, recall=0.9)
    assert len(Index(48).search(data[1][0], K, recall=0.9).ids) == 0
