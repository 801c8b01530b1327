"""The lane type under all float kernels: exp, bf16 and sums against numpy, the same bits on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from statepool.native import kernels

if kernels is None:
    pytest.skip("needs the native module", allow_module_level=True)

F32 = np.float32
NAMES = ("generic", "avx2", "avx512", "amx")
ISAS = NAMES[: NAMES.index(kernels.best_isa()) + 1]
floats = hnp.arrays(F32, st.integers(0, 70), elements=st.floats(width=32))


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    isa = kernels.isa()
    yield
    kernels.set_isa(isa)


def on_all(call: str, x: np.ndarray, kind: type) -> np.ndarray:
    """The op's result, asserted equal on all instruction sets (any NaN equals any NaN)."""
    results = []
    for isa in ISAS:
        kernels.set_isa(isa)
        out = np.empty(x.shape, kind)
        getattr(kernels, call)(x, out)
        results.append(out)
    for out in results[1:]:
        assert np.array_equal(out, results[0], equal_nan=kind is F32)
        if kind is F32:
            assert np.array_equal(np.signbit(out), np.signbit(results[0]))
    return results[0]


def test_exp_is_within_one_unit_in_the_last_place() -> None:
    x = np.random.default_rng(0).uniform(-87.3, 88, 200_003).astype(F32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(on_all("exp", x, F32) - exact) / np.spacing(exact.astype(F32))
    assert error.max() < 1.0


def test_exp_at_its_ends() -> None:
    x = np.array([0, -0.0, -87.31, -1e30, -np.inf, 1e30, np.inf, np.nan], F32)
    y = on_all("exp", x, F32)
    assert y[:5].tolist() == [1, 1, 0, 0, 0]
    assert y[5] == y[6] and 1.6e38 < y[5] < 1.8e38
    assert np.isnan(y[7])


@given(floats)
def test_exp_of_anything(x: np.ndarray) -> None:
    y = on_all("exp", x, F32)
    assert np.array_equal(np.isnan(y), np.isnan(x)) and (y[~np.isnan(y)] >= 0).all()


@given(floats)
def test_bf16_rounds_to_nearest_even(x: np.ndarray) -> None:
    bits = on_all("to_bf16", x, np.uint16)
    raw = x.view(np.uint32).astype(np.uint64)
    want = ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)
    numbers = ~np.isnan(x)
    assert np.array_equal(bits[numbers], want[numbers])
    wide = on_all("from_bf16", bits, F32)
    assert np.array_equal(np.isnan(wide), ~numbers)
    assert np.array_equal(wide.view(np.uint32) >> 16, bits)


@given(st.integers(0, 2**32), st.integers(0, 200))
def test_sums_follow_the_fixed_tree(seed: int, n: int) -> None:
    x = np.random.default_rng(seed).standard_normal(n).astype(F32)
    lanes = np.zeros(16, F32)
    for part in np.pad(x, (0, -n % 16)).reshape(-1, 16):
        lanes = lanes + part
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    for isa in ISAS:
        kernels.set_isa(isa)
        assert kernels.sum(x) == lanes[0]


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="out"):
        kernels.exp(np.zeros(3, F32), np.zeros(4, F32))
