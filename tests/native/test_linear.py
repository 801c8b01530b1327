"""Native linear layers against numpy integers and correctly rounded sums, on every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statepool.native import kernels

if kernels is None:
    pytest.skip("needs the native module", allow_module_level=True)

MODES = ("int8", "int4", "bf16", "fp32")
NAMES = ("generic", "avx2", "avx512", "amx")
ISAS = NAMES[: NAMES.index(kernels.best_isa()) + 1]
F32 = np.float32


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    isa, threads = kernels.isa(), kernels.threads()
    kernels.set_threads(1)
    yield
    kernels.set_isa(isa)
    kernels.set_threads(threads)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def apply(linear: object, x: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
    """Runs the layer into the middle of a larger array whose rim must stay as it was."""
    n = linear.n  # type: ignore[attr-defined]
    rim = np.full(x.shape[0] * n + 64, 12345.0, F32)
    out = rim[32:-32].reshape(x.shape[0], n)
    linear.apply(x, out, residual)  # type: ignore[attr-defined]
    assert (rim[:32] == 12345).all() and (rim[-32:] == 12345).all()
    return out.copy()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows to integers in -127..127 and their scales, in float32 step by step."""
    top = np.abs(x).max(1, initial=0).astype(F32)
    safe = np.where(top == 0, F32(1), top)
    data = np.where((top == 0)[:, None], 0, np.rint(x * (F32(127) / safe)[:, None]))
    return data.astype(np.int64), (top / F32(127)).astype(F32)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a*b + c rounded once: the product is exact in float64, the sum is rounded to odd there, then to float32."""
    product = a.astype(np.float64) * b.astype(np.float64)
    wide = c.astype(np.float64)
    total = product + wide
    part = total - product
    error = (product - (total - part)) + (wide - part)
    bits = total.view(np.int64)
    even = (bits & 1) == 0
    outward = (error > 0) == (total > 0)
    odd = np.where((error != 0) & even, np.where(outward, bits + 1, bits - 1), bits).view(np.float64)
    return odd.astype(F32)


def expected(weight: np.ndarray, x: np.ndarray, mode: str, bias: np.ndarray | None) -> np.ndarray:
    """y = x W^T + bias as the numerics of gemm.h spell it."""
    n, k = weight.shape
    if mode == "int8":
        scales = (np.abs(weight).max(1) / F32(127)).astype(F32)
        safe = np.where(scales == 0, F32(1), scales)
        values = np.clip(np.rint(weight / safe[:, None]), -127, 127).astype(np.int64)
        data, row_scales = quantise(x)
        y = ((data @ values.T).astype(F32) * scales) * row_scales[:, None]
    elif mode == "int4":
        groups = np.pad(weight, ((0, 0), (0, -k % 64))).reshape(n, -1, 64)
        top, bottom = groups.max(2), groups.min(2)
        raw = (np.where(top > -bottom, top, bottom) / F32(-8)).astype(F32).view(np.uint32)
        scales = ((raw + 0x7FFF + ((raw >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(F32)
        safe = np.where(scales == 0, F32(1), scales)
        values = np.clip(np.rint(groups / safe[..., None]), -8, 7).astype(np.int64)
        values[scales == 0] = 0
        data, row_scales = quantise(x)
        data = np.pad(data, ((0, 0), (0, -k % 64))).reshape(len(x), groups.shape[1], 64)
        y = np.zeros((len(x), n), F32)
        for g in range(groups.shape[1]):
            y = fma(scales[None, :, g], (data[:, g] @ values[:, g].T).astype(F32), y)
        y = y * row_scales[:, None]
    else:
        if mode == "bf16":
            raw = weight.view(np.uint32)
            weight = ((raw + 0x7FFF + ((raw >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(F32)
        y = np.zeros((len(x), n), F32)
        for column in range(k):
            y = fma(x[:, column, None], weight[None, :, column], y)
    return y if bias is None else y + bias


shapes = st.tuples(st.integers(0, 40), st.integers(1, 80), st.integers(1, 300))


@given(st.integers(0, 2**32), st.sampled_from(MODES), shapes, st.booleans(), st.booleans())
@example(1, "int8", (37, 48, 3072), True, True)
@example(2, "int4", (9, 33, 1024), False, True)
@example(3, "bf16", (13, 65, 129), True, False)
@example(4, "fp32", (7, 16, 64), False, False)
def test_equals_the_oracle_on_every_instruction_set(
    seed: int, mode: str, shape: tuple[int, int, int], biased: bool, added: bool
) -> None:
    m, n, k = shape
    weight, x = normal(seed, n, k), normal(seed + 1, m, k)
    x[:1] *= 1e4  # an outlier row must not touch its neighbours
    x[1:2] = 0
    weight[n // 2] = 0
    bias = normal(seed + 2, n) if biased else None
    residual = normal(seed + 3, m, n) if added else None
    y = expected(weight, x, mode, bias)
    if residual is not None:
        y = residual + y
    for isa in ISAS:
        kernels.set_isa(isa)
        assert same_bits(apply(kernels.Linear(weight, mode, bias), x, residual), y), isa


@pytest.mark.parametrize("mode", MODES)
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(mode: str) -> None:
    weight, x = normal(1, 100, 200), normal(2, 70, 200)
    linear = kernels.Linear(weight, mode)
    whole = apply(linear, x)
    for m in (1, 2, 3, 5, 6, 8, 9, 13, 25, 64):
        assert same_bits(apply(linear, x[:m]), whole[:m]), m
        assert same_bits(apply(linear, x[70 - m :]), whole[70 - m :]), m
    for threads in (2, 3, 7):
        kernels.set_threads(threads)
        assert same_bits(apply(kernels.Linear(weight, mode), x), whole), threads


def test_callers_at_the_same_time_do_not_disturb_each_other() -> None:
    kernels.set_threads(3)
    linear, x = kernels.Linear(normal(1, 128, 256)), normal(2, 20, 256)
    whole = apply(linear, x)
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: apply(linear, x), range(60)):
            assert same_bits(out, whole)


@pytest.mark.parametrize("mode", MODES)
def test_the_residual_may_be_the_output(mode: str) -> None:
    linear, x, start = kernels.Linear(normal(1, 50, 70), mode), normal(2, 11, 70), normal(3, 11, 50)
    y, out = apply(linear, x, start), start.copy()
    linear.apply(x, out, out)
    assert same_bits(out, y)


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(1, 150), st.integers(-30, 30))
def test_rows_are_quantised_as_numpy_does(seed: int, m: int, k: int, power: int) -> None:
    x = normal(seed, m, k) * F32(2.0**power)
    x[:1] = 0
    want, scales = quantise(x)
    for isa in ISAS:
        kernels.set_isa(isa)
        data, got = np.empty((m, k), np.int8), np.empty(m, F32)
        kernels.quantize(x, data, got)
        assert np.array_equal(data, want) and same_bits(got, scales)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_row_that_is_not_finite_gives_nan_and_leaves_the_others(mode: str, bad: float) -> None:
    linear, x = kernels.Linear(normal(1, 20, 100), mode), normal(2, 9, 100)
    clean = apply(linear, x)
    x[4, 77] = bad
    for isa in ISAS:
        kernels.set_isa(isa)
        out = apply(linear, x)
        assert np.isnan(out[4]).all()
        assert same_bits(np.delete(out, 4, 0), np.delete(clean, 4, 0))


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 1e-37, 3.8e-37, 1e-30, 3e38])
def test_rows_at_the_ends_of_the_range_stay_finite(tiny: float) -> None:
    linear = kernels.Linear(normal(1, 20, 64) / 100)
    x = np.full((2, 64), tiny, F32)
    results = []
    for isa in ISAS:
        kernels.set_isa(isa)
        results.append(apply(linear, x))
        assert np.isfinite(results[-1]).all() and same_bits(results[-1], results[0])


@given(st.integers(0, 2**32), st.sampled_from(MODES), st.integers(1, 40), st.integers(1, 200))
def test_dequantised_weights_are_within_half_a_step(seed: int, mode: str, n: int, k: int) -> None:
    weight = normal(seed, n, k)
    dense = np.full((n, k), np.nan, F32)
    kernels.Linear(weight, mode).dequantize(dense)
    error = np.abs(dense - weight)
    if mode == "int8":
        assert (error <= np.abs(weight).max(1, keepdims=True) / 127 * 0.5001).all()
    elif mode == "int4":  # up to one step where the far end of a group is clipped; bf16 scales add 1/256
        groups = np.pad(np.abs(weight), ((0, 0), (0, -k % 64))).reshape(n, -1, 64).max(2)
        assert (error <= np.repeat(groups / 8, 64, 1)[:, :k] * 1.04).all()
    elif mode == "bf16":
        assert (error <= np.abs(weight) / 256).all()
    else:
        assert (error == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_bf16_weights_give_what_their_floats_give(mode: str) -> None:
    bits = (normal(1, 40, 90).view(np.uint32) >> 16).astype(np.uint16)
    floats = (bits.astype(np.uint32) << 16).view(F32)
    x = normal(2, 5, 90)
    assert same_bits(apply(kernels.Linear(bits, mode), x), apply(kernels.Linear(floats, mode), x))


def test_facts_of_a_layer() -> None:
    weight = normal(1, 160, 1024)
    sizes = {mode: kernels.Linear(weight, mode).nbytes for mode in MODES}
    assert sizes == {
        "int8": 160 * 1024 + 160 * 4,
        "int4": 160 * 1024 // 2 + 160 * 16 * 2,
        "bf16": 160 * 1024 * 2,
        "fp32": 160 * 1024 * 4,
    }
    linear = kernels.Linear(weight, "int4")
    assert (linear.n, linear.k, linear.mode) == (160, 1024, "int4")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((np.full((2, 4), np.nan, F32), "int8"), "weight: NaN or infinity in rows 0..1"),
        ((np.full((2, 4), np.inf, F32), "bf16"), "weight"),
        ((np.full((2, 4), np.inf, F32), "int4"), "weight"),
        ((np.zeros((0, 4), F32), "int8"), "weight: must have at least one row"),
        ((np.zeros((2, 0), F32), "fp32"), "weight: must have at least one row"),
        ((np.zeros((1, 65537), F32), "int8"), "65536"),
        ((np.zeros((2, 4), F32), "int3"), "mode: 'int3'"),
        ((np.zeros((2, 4), F32), "int8", np.zeros(3, F32)), "bias"),
    ],
)
def test_bad_weights_are_named(arguments: tuple, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        kernels.Linear(*arguments)


def test_bad_calls_are_named() -> None:
    linear = kernels.Linear(normal(1, 8, 16))
    x, out = normal(2, 3, 16), np.empty((3, 8), F32)
    with pytest.raises(ValueError, match="x: must be"):
        linear.apply(normal(2, 3, 17), out)
    with pytest.raises(ValueError, match="out: must be"):
        linear.apply(x, np.empty((3, 9), F32))
    with pytest.raises(ValueError, match="residual: must be"):
        linear.apply(x, out, np.empty((2, 8), F32))
    with pytest.raises(TypeError):
        linear.apply(x.astype(np.float64), out)
    with pytest.raises(TypeError):
        linear.apply(x, out[:, ::2])
    with pytest.raises(ValueError, match="isa: 'sse9'"):
        kernels.set_isa("sse9")
    with pytest.raises(ValueError, match="threads"):
        kernels.set_threads(0)
