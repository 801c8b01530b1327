"""The Hopfield encoder keeps what it is shown, and the GAN learns from it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences import Code, census, make, orbit_key, verify
from statepool.tasks.sequences.search import Budget, search, searcher
from statepool.tasks.sequences.search.hpgan import Network, decode, descend, encode
from statepool.tasks.sequences.symmetry import representatives, without_signs


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


def test_repair_by_two_flips_mends_what_one_cannot() -> None:
    objective = make("zcp")
    start = np.random.default_rng(6).choice(np.array([-1, 1], np.int8), (60, 18))
    once, twice = (descend(objective, start, 9, flips)[0].reshape(-1, 2, 9) for flips in (1, 2))
    optimal = [int((objective.costs(codes) == 0).sum()) for codes in (once, twice)]
    assert optimal[1] > optimal[0]
    for codes in twice[objective.costs(twice) == 0].tolist():
        sums = [sum(row[i] * row[i + k] for row in codes for i in range(9 - k)) for k in range(1, 9)]
        assert sums[:4] == [0] * 4 and all(abs(s) == 2 for s in sums[4:])


@pytest.mark.parametrize("name", ["moccs", "zcp", "labs"])
def test_negations_taken_out_change_no_cost_and_are_all_that_there_are(name: str) -> None:
    objective, rng = make(name), np.random.default_rng(5)
    codes = rng.choice(np.array([-1, 1], np.int8), (20, objective.codes, 9))
    plain = without_signs(objective, codes)
    assert np.array_equal(objective.costs(plain), objective.costs(codes))
    assert (plain[:, 0, 0] == 1).all()
    negated = codes.copy()
    negated[:, ::2] *= -1  # of a set: one element throughout
    assert np.array_equal(without_signs(objective, negated), plain)


@pytest.mark.parametrize("name", ["moccs", "zcp", "labs"])
def test_forms_of_one_orbit_have_one_representative_in_it(name: str) -> None:
    objective, rng = make(name), np.random.default_rng(8)
    codes = rng.choice(np.array([-1, 1], np.int8), (20, objective.codes, 9))
    kept = representatives(objective, codes)
    for ours, theirs in zip(kept.tolist(), codes.tolist(), strict=True):
        keys = {orbit_key(objective, [Code(tuple(int(x < 0) for x in row)) for row in item]) for item in (ours, theirs)}
        assert len(keys) == 1
    alternating = 1 - 2 * (np.arange(9) % 2)
    forms = (-codes, codes[:, :, ::-1], codes * alternating, codes[:, :, ::-1] * -alternating)
    for form in forms[:1] if name == "moccs" else forms:
        assert np.array_equal(representatives(objective, form.astype(np.int8)), kept)
    if name == "zcp":
        for form in (codes[:, ::-1], np.stack([codes[:, 0], codes[:, 1, ::-1]], 1)):
            assert np.array_equal(representatives(objective, form), kept)


def test_a_net_that_saw_half_of_the_orbits_makes_valid_sets() -> None:
    objective, ideal = make("moccs"), census.complementary_sets(4)
    known = np.unique(without_signs(objective, ideal), axis=0)[::2]
    network = Network(16, "wgan", 1)
    network.train(encode(known.reshape(-1, 16)), 50)
    made = decode(network.sample(200), 16, np.random.default_rng(1))
    assert (objective.costs(made.reshape(-1, 4, 4)) == 0).mean() > 0.25


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
