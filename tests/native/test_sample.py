"""Choosing tokens natively: published noise vectors, the NumPy twin bit for bit, float64 sums, chi-square."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.engine import sampling
from statepool.native import kernels

if kernels is None:
    pytest.skip("needs the native module", allow_module_level=True)

INF = float("inf")
U = st.floats(0, 1, exclude_max=True)


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """Logits with ties, masked tokens, and sizes around the kernels' blocks."""
    size = draw(st.sampled_from([1, 2, 15, 16, 17, 255, 257, 1023, 1024, 1030, 5000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = (rng.standard_normal(size) * draw(st.sampled_from([0.0, 1.0, 5.0, 40.0]))).astype(np.float32)
    if draw(st.booleans()):
        row = np.round(row)
    if draw(st.booleans()):
        row[rng.random(size) < 0.5] = -INF
        row[rng.integers(size)] = 1.0
    return row


def test_philox_gives_the_published_vectors() -> None:
    # kat_vectors of Random123, philox4x32-10: (counter, key) -> first two words.
    # index is the third counter word; the fourth is always 0, so only such vectors are reachable from outside.
    assert kernels.philox_uniform(0, 0, 0) == ((0xE169C58D << 32 | 0x6627E8D5) >> 11) * 2.0**-53


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_philox_equals_its_twin(seed: int, index: int, position: int) -> None:
    assert kernels.philox_uniform(seed, index, position) == sampling.philox_uniform(seed, index, position)


@settings(max_examples=80, deadline=None)
@given(
    rows(),
    st.sampled_from([0.0, 1e-30, 0.3, 1.0, 2.5, 100.0]),
    st.sampled_from([0, 1, 2, 7, 300, 10**6]),
    st.sampled_from([1e-9, 0.3, 0.9, 0.999999, 1.0]),
    st.sampled_from([0.0, 1e-9, 0.05, 1.0]),
    U,
)
def test_sample_equals_its_twin(row: np.ndarray, temperature: float, k: int, p: float, m: float, u: float) -> None:
    assert kernels.sample(row, temperature, k, p, m, u) == sampling.sample(row, temperature, k, p, m, u)


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(0, 400))
def test_top_logprobs_equal_their_twin_and_float64(row: np.ndarray, k: int) -> None:
    ids, values = kernels.top_logprobs(row, k)
    twin_ids, twin_values = sampling.top_logprobs(row, k)
    assert np.array_equal(ids, twin_ids)
    assert np.array_equal(values, twin_values)
    exact = row.astype(np.float64) - row.max()
    exact -= np.log(np.exp(exact).sum())
    assert np.allclose(values, exact[ids], rtol=2e-7, atol=1e-6)
    for i in ids[:3].tolist():
        assert kernels.logprob_of(row, i) == sampling.logprob_of(row, i) == values[ids.tolist().index(i)]


@settings(max_examples=40, deadline=None)
@given(rows(), st.sampled_from([0.5, 1.0]), st.integers(0, 2**32))
def test_what_is_returned_belongs_together(row: np.ndarray, temperature: float, seed: int) -> None:
    token, raw, drawn = kernels.sample(row, temperature, 0, 1.0, 0.0, np.random.default_rng(seed).random())
    assert row[token] > -INF
    assert raw == kernels.logprob_of(row, token)
    exact = (row.astype(np.float64) - row.max()) / temperature
    # The weight 2^-42 of rounding down is all that may be missing.
    assert drawn == pytest.approx(
        exact[token] - math.log(np.exp(exact).sum()), abs=1e-3 if exact[token] < -15 else 1e-5
    )


def test_draws_follow_the_distribution() -> None:
    p = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    row, n = np.log(p).astype(np.float32), 8000
    for temperature, top_k in ((1.0, 0), (0.5, 0), (1.0, 3)):
        expected = p ** (1 / temperature)
        expected[top_k or 5 :] = 0
        expected *= n / expected.sum()
        draws = [
            kernels.sample(row, temperature, top_k, 1.0, 0.0, kernels.philox_uniform(5, 0, i))[0] for i in range(n)
        ]
        counts = np.bincount(draws, minlength=5)
        assert (counts[expected == 0] == 0).all()
        seen = expected > 0
        assert ((counts - expected)[seen] ** 2 / expected[seen]).sum() < 18.5  # chi-square, 4 dof, p = 0.001


@given(st.integers(1, 200), st.integers(0, 8), st.integers(0, 2**32))
def test_bitmask_equals_its_twin(size: int, words: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2**32, words, dtype=np.uint32)
    a, b = np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32)
    kernels.apply_bitmask(a, mask)
    sampling.apply_bitmask(b, mask)
    assert np.array_equal(a, b)


@pytest.mark.parametrize("choose", [kernels.sample, sampling.sample])
def test_nothing_to_choose_is_an_error(choose) -> None:  # type: ignore[no-untyped-def]
    for row in ([-INF, -INF], [1.0, INF]):
        for temperature in (0.0, 1.0):
            with pytest.raises(ValueError, match="row: no token"):
                choose(np.array(row, np.float32), temperature, 0, 1.0, 0.0, 0.5)


def test_instruction_sets_agree() -> None:
    row = np.random.default_rng(3).standard_normal(3000).astype(np.float32) * 3
    best = kernels.isa()
    expected = [kernels.sample(row, 0.7, 0, 0.95, 0.0, u) for u in np.linspace(0, 0.99, 20)]
    for isa in ("generic", "avx2", "avx512", "amx"):
        try:
            kernels.set_isa(isa)
        except ValueError:
            continue
        try:
            assert [kernels.sample(row, 0.7, 0, 0.95, 0.0, u) for u in np.linspace(0, 0.99, 20)] == expected
        finally:
            kernels.set_isa(best)
