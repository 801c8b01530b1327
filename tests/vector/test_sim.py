"""The simulator against the engine it imitates, where the answer does not depend on a clock."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.vector.synthetic import clustered, recall

from statepool.vector import Index
from statepool.vector.commands import main
from statepool.vector.native import ENGINES
from statepool.vector.sim.costs import Costs, fit
from statepool.vector.sim.engines import simulate
from statepool.vector.sim.study import Check, Projection, Study, compare
from statepool.vector.sim.world import Graph, Pool, Search

K, WIDTH = 10, 60
COSTS = Costs(query=5000, hop=100, first=50, row=80, insert=20, shared=60, one_way=200, start=400, round=700, merge=10)
PARALLEL = ["edge", "iqan", "nosync", "async", "roles"]


@pytest.fixture(scope="module")
def world() -> tuple[Index, np.ndarray]:
    rows, queries = clustered(3000, 40, 30)
    index = Index(40, "l2", R=16, build_window=60)
    index.build(rows)
    return index, queries


def searched(index: Index, query: np.ndarray, engine: str, threads: int, costs: Costs = COSTS):
    return simulate(engine, Search(graph_of(index), costs, index.distances(query).tolist(), WIDTH), threads, K)


@functools.cache
def graph_of(index: Index) -> Graph:
    return Graph.of(*index.graph())


def test_one_thread_does_what_the_engine_does(world: tuple[Index, np.ndarray]) -> None:
    index, queries = world
    for query in queries:
        real, model = index.search(query, K, WIDTH), searched(index, query, "sequential", 1)
        assert model.found == real.ids.tolist()
        assert model.distances == real.stats.ndc
        assert model.nanoseconds == pytest.approx(5000 + (100 + 50) * real.stats.hops + (80 + 20) * real.stats.ndc)


@pytest.mark.parametrize("engine", PARALLEL)
def test_more_threads_lose_no_recall(engine: str, world: tuple[Index, np.ndarray]) -> None:
    index, queries = world
    truth = np.stack([index.exact(query, K).ids for query in queries])
    alone = recall([index.search(query, K, WIDTH).ids for query in queries], truth)
    for threads in (2, 8, 32):
        found = [np.array(searched(index, query, engine, threads).found) for query in queries]
        assert recall(found, truth) >= alone - 0.02, threads


def test_free_threads_are_faster_and_dear_barriers_are_not(world: tuple[Index, np.ndarray]) -> None:
    index, queries = world
    free = Costs(query=0, hop=80, first=20, row=90, insert=10, shared=0, one_way=0, start=0, round=0, merge=0)
    dear = replace(free, one_way=200, round=100_000)

    def total(engine: str, threads: int, costs: Costs) -> float:
        return sum(searched(index, query, engine, threads, costs).nanoseconds for query in queries)

    one = total("sequential", 1, free)
    for engine in PARALLEL:
        if engine != "nosync":  # its threads share no bound: each does nearly the whole search
            assert total(engine, 8, free) < 0.8 * one, engine
    assert total("edge", 8, dear) > 2 * one
    assert total("async", 8, dear) < one, "nothing in it waits at a barrier"


def test_edge_counts_what_the_engine_counts(world: tuple[Index, np.ndarray]) -> None:
    index, queries = world
    for query in queries[:10]:
        real = index._core.search(query, K, WIDTH, 4, ENGINES["edge"], 0, 8, 1)[2]
        assert searched(index, query, "edge", 4).distances == real.ndc


def test_constants_come_back_from_exact_times() -> None:
    hops, distances = [20, 40, 80, 160], [500, 900, 1500, 2600]
    times = [3000 + 240 * h + 90 * d for h, d in zip(hops, distances, strict=True)]
    # The probe sees every part half as long again, and the machine was a tenth slower while two threads searched.
    beside = (1.1 * (240 * 80 + 90 * 1500), 80, 1500, 1.1 * ((240 + 50) * 70 + 90 * 800), 70, 800)
    costs = fit(times, distances, hops, (240.0, 120.0, 117.0, 18.0), beside, (170.0, 560.0, 400.0, 10.0))
    found = (costs.query, costs.hop, costs.first, costs.row, costs.insert, costs.shared)
    assert found == pytest.approx((3000, 160, 80, 78, 12, 50))
    assert costs.meeting(1) == costs.hop
    assert costs.meeting(2) == pytest.approx(160 + 50)
    assert costs.meeting(64) == pytest.approx(160 + 50 * 2 * 63 / 64)
    assert costs.barrier(2) == 560
    assert costs.barrier(16) > costs.barrier(4)
    assert Check("async", 2, measured=0.5, simulated=0.6).error == pytest.approx(0.2)


def test_times_that_leave_nothing_for_the_query_are_all_expansions() -> None:
    costs = fit(
        [100.0, 250.0],
        [1, 2],
        [1, 2],
        (20.0, 10.0, 60.0, 10.0),
        (100.0, 1, 1, 100.0, 1, 1),
        (170.0, 560.0, 400.0, 10.0),
    )
    assert costs.query == 0
    assert costs.expansion(1) == pytest.approx(np.mean([100, 125]))


def test_an_edge_slice_pays_for_its_first_row_and_the_caller_for_all_insertions() -> None:
    # One row that leads to eight: the expansion is cut in two, the tags, the first row and the insertions are not.
    links = [list(range(1, 9)), *([] for _ in range(8))]
    search = Search(Graph(links, [0]), COSTS, [float(i) for i in range(9)], WIDTH)
    spent = simulate("edge", search, 2, 1).nanoseconds
    entry, rest = COSTS.distance, 8 * (COSTS.hop + COSTS.first + COSTS.round)
    assert spent == pytest.approx(5000 + 400 + entry + (100 + 50 + 4 * 80 + 8 * 20 + 700) + rest)


def test_roles_share_distances_among_all_of_a_group(world: tuple[Index, np.ndarray]) -> None:
    index, queries = world
    dear = replace(COSTS, row=2000.0)
    times = [
        sum(searched(index, query, "roles", threads, dear).nanoseconds for query in queries[:10])
        for threads in (1, 2, 4, 8)
    ]
    assert times == sorted(times, reverse=True), "where a distance is dear, every calculator pays"
    assert times[0] > 3 * times[3]
    for query in queries[:10]:
        one = searched(index, query, "roles", 4)
        assert one.distances <= 1.5 * searched(index, query, "sequential", 1).distances


def test_projections_are_compared_at_their_own_best_threads() -> None:
    rows = {4: (60.0, 50.0), 8: (40.0, 30.0), 16: (36.0, 24.0), 32: (38.0, 20.0)}
    found = compare([Projection(p, {"iqan": theirs, "async": ours}) for p, (theirs, ours) in rows.items()])
    assert found is not None
    assert (found.mine, found.rival) == ((20.0, 32), (36.0, 16))
    assert found.latency == pytest.approx(36 / 20)
    assert found.throughput == pytest.approx(36 * 16 / (30 * 8)), "8 threads are the cheapest that are as fast"
    assert compare([Projection(4, {"async": 1.0})]) is None


def test_a_machine_the_simulator_does_not_describe_gets_no_projection(
    world: tuple[Index, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index, queries = world
    index.save(tmp_path / "one.index")
    np.save(tmp_path / "queries.npy", queries[:10])
    arguments = ["sim", str(tmp_path / "one.index"), str(tmp_path / "queries.npy"), "--count", "5", "--threads", "4"]
    checks = [Check("edge", 2, 1.0, 1.1)]
    monkeypatch.setattr(Study, "calibrate", lambda _: COSTS)
    monkeypatch.setattr(Study, "validate", lambda *_: iter(checks))
    assert main(arguments) == 0
    assert "p=4" in capsys.readouterr().out
    checks.append(Check("async", 2, 0.5, 0.6))
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "p=4" not in said.out
    assert "no projections" in said.err


def test_a_pool_keeps_the_nearest_and_gives_half_away() -> None:
    rng = np.random.default_rng(0)
    pool, items = Pool(20), [(float(d), i) for i, d in enumerate(rng.random(100))]
    for item in items:
        pool.insert(item)
    best = sorted(items)[:20]
    assert pool.items == best
    assert [pool.take(1.0) for _ in range(4)] == best[:4]
    moved = pool.split(best[11][0], 32)
    assert moved == best[5:12:2]
    assert pool.items == [item for item in best if item not in moved]
