"""The simulator against the engine it imitates, where the answer does not depend on a clock."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from tests.vector.synthetic import clustered, recall

from statepool.vector import Index
from statepool.vector.native import ENGINES
from statepool.vector.sim.costs import Costs, fit
from statepool.vector.sim.engines import simulate
from statepool.vector.sim.study import Check
from statepool.vector.sim.world import Graph, Pool, Search

K, WIDTH = 10, 60
COSTS = Costs(query=5000, hop=150, distance=100, one_way=200, start=400, round=700, merge=10)
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
        assert model.nanoseconds == pytest.approx(
            COSTS.query + COSTS.hop * real.stats.hops + COSTS.distance * real.stats.ndc
        )


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
    free = Costs(query=0, hop=100, distance=100, one_way=0, start=0, round=0, merge=0)
    dear = Costs(query=0, hop=100, distance=100, one_way=200, start=0, round=100_000, merge=0)

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
    times = [3000 + 200 * h + 90 * d for h, d in zip(hops, distances, strict=True)]
    costs = fit(times, distances, hops, (170.0, 560.0, 400.0, 10.0))
    assert (costs.query, costs.hop, costs.distance) == pytest.approx((3000, 200, 90))
    assert costs.barrier(2) == 560
    assert costs.barrier(16) > costs.barrier(4)
    assert Check("async", 2, measured=0.5, simulated=0.6).error == pytest.approx(0.2)


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
