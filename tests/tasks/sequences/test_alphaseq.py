"""Tree search with a net: it reaches proved optima, its net learns, and the same seed plays the same games."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

pytest.importorskip("torch")
from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences import make, verify
from statepool.tasks.sequences.search import Budget, search, searcher
from statepool.tasks.sequences.search.alphaseq import Net


@pytest.mark.parametrize(("name", "n", "proved"), [("labs", 13, 6), ("mmf-sir", 11, 25), ("zcp", 5, 0)])
def test_small_optima_are_reached(name: str, n: int, proved: int) -> None:
    found = search(searcher("alphaseq"), make(name), n, Budget(rounds=30, target=proved))
    assert found.best.value == str(proved)
    verify(found.best)


def test_same_seed_same_games_and_a_later_start_joins_them() -> None:
    def rounds(seed: int, first: int, count: int) -> list[tuple[bytes, float]]:
        batches = searcher("alphaseq").batches(make("labs"), 18, seed, first)
        return [(batch.phases.tobytes(), batch.cost) for batch in islice(batches, count)]

    whole = rounds(2, 0, 3)
    assert rounds(2, 0, 2) == whole[:2] and rounds(2, 2, 1) == whole[2:]
    assert rounds(3, 0, 1) != whole[:1]


def test_the_net_learns_moves_and_values() -> None:
    noise = np.random.default_rng(0)
    codes = noise.choice(np.array([-1, 0, 1], np.int8), (64, 12))
    visits = np.eye(16, dtype=np.float32)[(codes[:, 0] + 1).astype(int)]
    rewards = (codes[:, 1] / 2).astype(np.float32)
    net = Net(12, 1)
    for _ in range(150):
        net.learn(codes, visits, rewards)
    priors, values = net.judge(codes)
    assert (priors.argmax(1) == codes[:, 0] + 1).mean() > 0.95
    assert np.abs(values - rewards).mean() < 0.1


def test_lengths_out_of_reach_are_named() -> None:
    with pytest.raises(InvalidRequest, match="2 to 1024 symbols"):
        next(searcher("alphaseq").batches(make("labs"), 2000, 0, 0))
