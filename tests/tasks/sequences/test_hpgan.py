"""The Hopfield encoder keeps what it is shown, and the GAN learns from it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences import make, verify
from statepool.tasks.sequences.search import Budget, search, searcher
from statepool.tasks.sequences.search.hpgan import Network, decode, descend, encode


def test_a_network_remembers_its_code_up_to_the_sign() -> None:
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1, 1], np.int8), (200, 31))
    back = decode(encode(signs), 31, rng)
    assert ((back == signs).all(1) | (back == -signs).all(1)).all()


def test_noise_in_the_weights_is_forgiven() -> None:
    rng = np.random.default_rng(1)
    signs = rng.choice(np.array([-1, 1], np.int8), (200, 31))
    weights = encode(signs)
    weights += rng.normal(0, 0.5, weights.shape).astype(np.float32)
    back = decode(weights, 31, rng)
    assert ((back == signs).all(1) | (back == -signs).all(1)).mean() > 0.95


@pytest.mark.parametrize("loss", ["gan", "wgan"])
def test_training_moves_samples_towards_the_training_set(loss: str) -> None:
    rng = np.random.default_rng(2)
    signs = np.repeat(rng.choice(np.array([-1, 1], np.int8), (1, 12)), 8, 0)
    network = Network(12, loss, 3)

    def near() -> float:
        return float(np.mean(np.sign(network.sample(256)) == encode(signs[:1])))

    before = near()
    network.train(encode(signs), 60)
    assert before < 0.7 and near() > 0.9


def test_repair_ends_where_no_flip_helps() -> None:
    objective = make("labs")
    start = np.random.default_rng(4).choice(np.array([-1, 1], np.int8), (5, 14))
    end, evaluations = descend(objective, start, 14)
    costs, before = objective.costs(end[:, None]), objective.costs(start[:, None])
    assert (costs <= before).all() and evaluations >= 5 * 14
    for row, cost in zip(end, costs, strict=True):
        near = np.where(np.eye(14, dtype=bool), -row, row).astype(np.int8)
        assert (objective.costs(near[:, None]) >= cost).all()


def test_the_search_runs_and_certifies() -> None:
    found = search(
        searcher("hpgan", {"loss": "wgan", "repair": True, "elite": 32}), make("labs"), 13, Budget(rounds=2), seed=1
    )
    verify(found.best)
    assert found.rounds == 2 and found.best.number <= 14
    with pytest.raises(InvalidRequest, match="neither gan nor wgan"):
        Network(9, "other", 0)
    with pytest.raises(InvalidRequest, match="2 to 256 symbols"):
        next(searcher("hpgan").batches(make("labs"), 300, 0, 0))


def test_the_room_itself_needs_no_torch() -> None:
    code = "import statepool.tasks.sequences.search, statepool.tasks.sequences.commands, sys; "
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
