"""Choosing a token, against published vectors, exhaustive sums and a chi-square test."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.engine import sampling

ROWS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40).map(lambda v: np.array(v, np.float32))


def test_philox_matches_random123_known_answers():
    # kat_vectors of Random123 for philox4x32-10: counter, key -> words 0 and 1.
    full = 0xFFFFFFFFFFFFFFFF
    assert sampling.philox_uniform(0, 0, 0) == ((0xE169C58D << 32 | 0x6627E8D5) >> 11) * 2.0**-53
    assert sampling.philox_uniform(0xDEADBEEF, 0, 7) != sampling.philox_uniform(0xDEADBEEF, 1, 7)
    assert sampling.philox_uniform(full, 0, 1) == sampling.philox_uniform(-1, 0, 1)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**40))
def test_noise_is_a_uniform_number(seed, index, position):
    assert 0.0 <= sampling.philox_uniform(seed, index, position) < 1.0


def test_noise_of_neighbouring_positions_is_uncorrelated():
    draws = np.array([sampling.philox_uniform(1, i, p) for i in range(40) for p in range(100)])
    counts = np.histogram(draws, 20, (0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.05


@given(ROWS, st.integers(0, 10), st.floats(0.05, 1.0), st.floats(0, 0.5), st.floats(0, 0.999999))
def test_truncation_keeps_what_its_definition_says(row, top_k, top_p, min_p, u):
    token, raw, drawn = sampling.sample(row, 0.7, top_k, top_p, min_p, u)
    p = np.exp(row.astype(np.float64) - row.max()) ** (1 / 0.7)
    kept = sorted(range(len(row)), key=lambda i: (-row[i], i))
    kept = kept[:top_k] if top_k else kept
    total, nucleus, mass = sum(p[i] for i in kept), [], 0.0
    for i in kept:
        if nucleus and mass >= top_p * total * (1 + 1e-9):
            break
        nucleus.append(i)
        mass += p[i]
    nucleus = [i for i in nucleus if p[i] >= min_p * p[nucleus[0]] * (1 - 1e-9)]
    assert token in nucleus
    assert raw == pytest.approx(
        math.log(np.exp(row[token].astype(np.float64)) / np.exp(row.astype(np.float64)).sum()), abs=1e-4
    )
    assert drawn <= 1e-9


def test_draws_follow_the_distribution():
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    n = 1500
    draws = [sampling.sample(row, 1.0, 0, 1.0, 0.0, sampling.philox_uniform(3, 0, i))[0] for i in range(n)]
    expected = n * np.array([0.5, 0.3, 0.15, 0.05])
    assert ((np.bincount(draws, minlength=4) - expected) ** 2 / expected).sum() < 16.27  # 3 dof, p = 0.001


def test_greedy_takes_the_lowest_id_among_equals():
    assert sampling.sample(np.array([1, 5, 5, 0], np.float32), 0.0, 0, 1.0, 0.0, 0.3)[0] == 1


def test_masked_tokens_are_never_drawn():
    row = np.zeros(70, np.float32)
    mask = np.zeros(3, np.uint32)
    mask[2] = 1 << 3
    sampling.apply_bitmask(row, mask)
    assert {sampling.sample(row, 1.0, 0, 1.0, 0.0, u)[0] for u in np.linspace(0, 0.999, 50)} == {67}


def test_penalties_follow_the_openai_formula():
    row = np.array([2.0, -2.0, 1.0], np.float32)
    sampling.apply_penalties(row, {0: 3}, np.array([0, 1]), 0.5, 0.25, 2.0)
    assert row.tolist() == [1.0 - 0.5 - 0.75, -4.0, 1.0]
