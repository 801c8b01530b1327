"""An index that changes, against a dict of rows and brute force in float64."""

from __future__ import annotations

import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.vector.synthetic import clustered, distances, recall

from statepool.core.errors import InvalidRequest, NotFound
from statepool.vector import (
    DimensionError,
    Index,
    LiveIndex,
    Snapshot,
    open,  # noqa: A004 - the name users know from files
)
from statepool.vector.log import log_path

K = 10


def nearest(rows: dict[int, np.ndarray], query: np.ndarray, k: int, metric: str = "l2") -> list[float]:
    """Distances of the true nearest: ids may tie, distances not."""
    if not rows:
        return []
    found = distances(metric, np.stack(list(rows.values())), query[None])[0]
    return sorted(found.tolist())[:k]


class Changes(RuleBasedStateMachine):
    """Any order of changes, with a wide search that must find exactly what looking at every row finds."""

    def __init__(self) -> None:
        super().__init__()
        self.index = self.start()
        self.model: dict[int, np.ndarray] = {}
        self.ages: dict[int, int] = {}
        self.random = np.random.default_rng(0)
        self.names = self.clock = 0
        self.snapshots: list[tuple[Snapshot, dict[int, np.ndarray], dict[int, int]]] = []

    def start(self) -> LiveIndex:
        return LiveIndex(8, "l2", R=16, build_window=32, capacity=4000, columns={"age": "i64"})

    def write(self, ids: list[int]) -> np.ndarray:
        """New rows of these ids in the model."""
        rows = self.random.normal(size=(len(ids), 8)).astype(np.float32)
        self.model |= dict(zip(ids, rows, strict=True))
        self.clock += 1
        self.ages |= dict.fromkeys(ids, self.clock)
        return rows

    @rule(count=st.integers(1, 60))
    def add(self, count: int) -> None:
        ids = list(range(self.names, self.names + count))
        self.names += count
        rows = self.write(ids)
        assert self.index.add(rows, ids, columns={"age": [self.clock] * count}) == count

    @rule(share=st.sampled_from([0.1, 0.5, 1.0]))
    def delete(self, share: float) -> None:
        ids = [one for one in self.model if self.random.random() < share]
        assert self.index.delete([*ids, self.names + 5]) == len(ids)
        for one in ids:
            del self.model[one], self.ages[one]

    @rule()
    def update(self) -> None:
        ids = [one for one in self.model if self.random.random() < 0.2]
        rows = self.write(ids)
        assert self.index.update(ids, rows, columns={"age": [self.clock] * len(ids)}) == len(ids)

    @rule()
    def repair(self) -> None:
        self.index.repair()
        assert self.snapshots or self.index.stats()["dead"] == 0

    @rule(seal=st.booleans())
    def compact(self, seal: bool) -> None:
        if self.model:
            self.index.compact(seal=seal)

    @rule()
    def look(self) -> None:
        self.snapshots.append((self.index.snapshot(), dict(self.model), dict(self.ages)))

    @precondition(lambda self: self.snapshots)
    @rule()
    def look_away(self) -> None:
        self.snapshots.pop(0)[0].close()

    @invariant()
    def agrees(self) -> None:
        assert self.index._parts.live.unreachable() == 0
        for view, model, ages in [(self.index, self.model, self.ages), *self.snapshots]:
            self.check(view, model, ages)

    def check(self, view: LiveIndex | Snapshot, model: dict[int, np.ndarray], ages: dict[int, int]) -> None:
        assert len(view) == len(model)
        assert view.ids().tolist() == sorted(model)
        query = self.random.normal(size=8).astype(np.float32)
        bound = int(self.random.integers(0, self.clock + 2))
        young = {one: row for one, row in model.items() if ages[one] >= bound}
        for rows, chosen in ((model, None), (young, {"age": {"ge": bound}})):
            truth = nearest(rows, query, K)
            for found in (view.search(query, K, 2000, filter=chosen), view.exact(query, K, filter=chosen)):
                np.testing.assert_allclose(found.distances, truth, rtol=1e-4, atol=1e-5)
                for one, gap in zip(found.ids.tolist(), found.distances, strict=True):
                    assert ((rows[one].astype(float) - query) ** 2).sum() == pytest.approx(gap, rel=1e-4, abs=1e-5)
        ids = list(model)[:5]
        if ids:
            np.testing.assert_array_equal(view.get(ids), np.stack([model[one] for one in ids]))
            assert all(one in view for one in ids)
        assert self.names + 5 not in view


class KeptChanges(Changes):
    """The same over a file: closed, or left as a killed process leaves it, and opened again."""

    def start(self) -> LiveIndex:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "index"
        index = super().start()
        index.add(np.ones((1, 8)), [10**6], columns={"age": [0]})
        index.save(self.path)
        kept = open(self.path, "rw")
        kept.delete([10**6])
        return kept

    @rule(level=st.sampled_from(["process", "power"]))
    def reopen(self, level: str) -> None:
        self.index.close()
        self.index = open(self.path, "rw", durability=level)

    @rule()
    def kill(self) -> None:
        """Files as they are now are all that the next process gets."""
        left = Path(tempfile.mkdtemp(dir=self.folder.name)) / "index"
        for name in (self.path, log_path(self.path)):
            shutil.copy(name, left.with_name(name.name))
        assert len(open(left)) == len(self.model)
        self.index.close()
        self.path = left
        self.index = open(left, "rw")

    def teardown(self) -> None:
        self.index.close()
        self.folder.cleanup()


few = settings(max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
Changes.TestCase.settings = KeptChanges.TestCase.settings = few
TestChanges, TestKeptChanges = Changes.TestCase, KeptChanges.TestCase


@pytest.mark.parametrize("metric", ["cos", "ip", "l2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i8"])
def test_recall(metric: str, dtype: str) -> None:
    rows, queries = clustered(1500, 24, 60)
    index = LiveIndex(24, metric, dtype, R=32, build_window=80)
    index.add(rows, np.arange(1500))
    truth = np.argsort(distances(metric, rows, queries), axis=1)[:, :K]
    exact = recall([index.exact(query, K).ids for query in queries], truth)
    found = recall([index.search(query, K, 80).ids for query in queries], truth)
    assert exact >= (0.9 if dtype == "i8" else 0.97)
    assert found >= exact - 0.02


def fill(writers: int, each: int, runs: int) -> None:
    for run in range(runs):
        rows, _ = clustered(writers * each, 16, 1, seed=run)
        index = LiveIndex(16, "l2", R=16, build_window=48)
        shares = np.array_split(np.random.default_rng(run).permutation(len(rows)), writers)
        barrier = threading.Barrier(writers)

        def write(share: np.ndarray, index: LiveIndex = index, rows: np.ndarray = rows, at=barrier) -> None:
            at.wait()
            for one in np.array_split(share, max(1, len(share) // 50)):
                index.add(rows[one], one)

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, shares))
        assert len(index) == len(rows)
        assert index._parts.live.unreachable() == 0
        everything = index.search(rows[0], len(rows), len(rows))
        assert set(everything.ids.tolist()) == set(range(len(rows)))


def test_rows_added_by_many_threads_are_all_reachable() -> None:
    fill(writers=8, each=300, runs=2)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_eighty_thousand_rows_added_by_eight_threads_are_all_reachable() -> None:
    fill(writers=8, each=10_000, runs=3)


def test_an_acknowledged_row_is_found_at_once_while_rows_come_and_go() -> None:
    rows, _ = clustered(3000, 16, 1, seed=4)
    index = LiveIndex(16, "l2", R=32, build_window=80)
    index.add(rows[:1000], np.arange(1000))
    failures: list[int] = []
    done = threading.Event()

    def churn() -> None:
        for first in range(0, 900, 100):
            index.delete(np.arange(first, first + 100))
            index.repair()
        done.set()

    def write() -> None:
        for one in range(1000, 3000):
            index.add(rows[one : one + 1], [one])
            if one not in index.search(rows[one], 1, 64).ids:
                failures.append(one)

    threads = [threading.Thread(target=churn), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    while not done.is_set():
        found = index.search(rows[0], 20, 64)
        assert len(set(found.ids.tolist())) == 20
    for thread in threads:
        thread.join()
    assert len(failures) <= 0.01 * 2000
    assert index._parts.live.unreachable() == 0
    gone = set(range(900))
    assert not gone & set(index.search(rows[0], 2100, 2100).ids.tolist())


def turn_over(count: int, times: int) -> tuple[float, float, float]:
    """Recall with every row replaced `times` times, just after a repair, and of a fresh index; the narrowest search."""
    rows, queries = clustered(count * (times + 1), 24, 1000, seed=7)
    index = LiveIndex(24, "l2", R=16, build_window=60, capacity=2 * count)
    index.add(rows[:count], np.arange(count))
    step = count // 10
    for first in range(0, count * times, step):
        index.delete(np.arange(first, first + step))
        index.add(rows[count + first : count + first + step], np.arange(count + first, count + first + step))
    fresh = LiveIndex(24, "l2", R=16, build_window=60)
    left = np.arange(count * times, count * (times + 1))
    fresh.add(rows[left], left)
    truth = left[np.argsort(distances("l2", rows[left], queries), axis=1)[:, :K]]

    def found(one: LiveIndex) -> float:
        return recall([one.search(query, K, 10).ids for query in queries], truth)

    churned = found(index)
    index.repair()
    return churned, found(index), found(fresh)


def test_turnover_costs_little_recall() -> None:
    churned, repaired, fresh = turn_over(1000, 5)
    assert min(churned, repaired) >= fresh - 0.005


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_turnover_of_twenty_times_costs_little_recall() -> None:
    churned, repaired, fresh = turn_over(5000, 20)
    assert min(churned, repaired) >= fresh - 0.005


@pytest.mark.parametrize("built", [False, True])
def test_deleted_rows_take_no_places_of_a_search(built: bool) -> None:
    dice = np.random.default_rng(8)
    rows, queries = (dice.normal(size=(count, 24)).astype(np.float32) for count in (1200, 500))
    fresh, index = LiveIndex(24, "l2", R=16, build_window=60), LiveIndex(24, "l2", R=16, build_window=60)
    left = np.flatnonzero(np.arange(1200) % 5)
    fresh.add(rows[left], left)
    if built:
        base = Index(24, "l2", R=16, build_window=60)
        base.build(rows)
        index = LiveIndex.over(base)
    else:
        index.add(rows, np.arange(1200))
    index.delete(np.arange(0, 1200, 5))
    assert index.stats()["dead"] + index.stats()["gone"] == 240, "few enough to stay in the graph"
    truth = left[np.argsort(distances("l2", rows[left], queries), axis=1)[:, :K]]
    churned, other = (recall([one.search(query, K, 15).ids for query in queries], truth) for one in (index, fresh))
    assert churned >= other, "a narrow search in rows of many dimensions, which misses an eighth"


def test_changes_over_a_file(tmp_path: Path) -> None:
    rows, queries = clustered(2000, 24, 50, seed=3)
    built = Index(24, "cos", R=16, build_window=60)
    built.build(rows[:1500], np.arange(1500))
    built.seal()
    built.save(tmp_path / "index")
    index = LiveIndex.over(open(tmp_path / "index"))
    model = dict(enumerate(rows[:1500]))
    index.add(rows[1500:1900], np.arange(1500, 1900))
    model |= dict(zip(range(1500, 1900), rows[1500:1900], strict=True))
    index.update(np.arange(100), rows[1900:])
    model |= dict(zip(range(100), rows[1900:], strict=True))
    assert index.delete(np.arange(1000, 1400)) == 400
    for one in range(1000, 1400):
        del model[one]

    def check(one: LiveIndex | Index) -> None:
        names, table = np.array(list(model)), np.stack(list(model.values()))
        truth = names[np.argsort(distances("cos", table, queries), axis=1)[:, :K]]
        assert recall([one.exact(query, K).ids for query in queries], truth) >= 0.999
        assert recall([one.search(query, K, 100).ids for query in queries], truth) >= 0.97

    assert len(index) == len(model)
    check(index)
    index.save(tmp_path / "index")
    check(index)
    check(open(tmp_path / "index"))
    assert index.stats()["changed"] == 0


def test_most_of_the_base_may_go() -> None:
    rows, _ = clustered(600, 16, 1)
    built = Index(16, "l2", R=16, build_window=40)
    built.build(rows)
    index = LiveIndex.over(built)
    index.delete(np.arange(595))
    assert set(index.search(rows[0], 10, 16).ids.tolist()) == set(range(595, 600))
    assert len(index.search(rows[0], 3).ids) == 3


def test_bad_input() -> None:
    index = LiveIndex(4, "cos", capacity=8)
    row = np.eye(4, dtype=np.float32)
    index.add(row, [0, 1, 2, 2**63 - 1])
    with pytest.raises(DimensionError, match="X: has 3 values"):
        index.add(np.ones((1, 3)), [9])
    with pytest.raises(InvalidRequest, match="ids: 1 is in the index already"):
        index.add(row[:2], [9, 1])
    assert 9 not in index
    with pytest.raises(InvalidRequest, match="occurs twice"):
        index.add(row[:2], [9, 9])
    with pytest.raises(InvalidRequest, match="ids: -1 is outside"):
        index.add(row[:1], [-1])
    with pytest.raises(InvalidRequest, match="9223372036854775808 is above"):
        index.add(row[:1], [2**63])
    with pytest.raises(InvalidRequest, match="1 integers, one per row"):
        index.add(row[:1], ["nine"])
    with pytest.raises(InvalidRequest, match="row 1 holds NaN"):
        index.add(np.array([[1, 0, 0, 0], [np.nan, 0, 0, 0]]), [9, 10])
    with pytest.raises(InvalidRequest, match="row 0 is zero"):
        index.add(np.zeros((1, 4)), [9])
    with pytest.raises(NotFound, match="ids: 7 is not in the index"):
        index.update([0, 7], row[:2])
    with pytest.raises(NotFound, match="ids: 7"):
        index.get([7])
    with pytest.raises(InvalidRequest, match="no room beyond 8 changed rows"):
        index.add(np.tile(row, (2, 1)), np.arange(20, 28))
    with pytest.raises(InvalidRequest, match="k: 0 is outside"):
        index.search(row[0], 0)
    with pytest.raises(InvalidRequest, match="q: holds NaN"):
        index.search(np.full(4, np.nan))
    with pytest.raises(InvalidRequest, match="alpha: 9"):
        LiveIndex(4, alpha=9)
    with pytest.raises(InvalidRequest, match="the index is empty"):
        LiveIndex(4).compact()
    assert len(LiveIndex(4).search(row[0]).ids) == 0
    assert len(index) == 4
    assert index.ids().tolist() == [0, 1, 2, 2**63 - 1]
