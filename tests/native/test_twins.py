"""Every op the engine calls, native and torch, on drawn shapes: the same bits, layers and models too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from statepool.engine import ops
from statepool.engine.ops.arithmetic import quantise_rows
from statepool.native import kernels

if kernels is None:
    pytest.skip("needs the native module", allow_module_level=True)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_twin_has_every_name_with_the_same_parameters() -> None:
    assert [name for name in ops.__all__ if not hasattr(kernels, name)] == []


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["int8", "int4", "bf16", "fp32"]),
    st.integers(0, 9),
    st.integers(1, 70),
    st.integers(1, 200),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_linear(seed: int, mode: str, m: int, n: int, k: int, biased: bool, added: bool, bf16: bool) -> None:
    weight, x = normal(seed, n, k), normal(seed + 1, m, k) * 5
    weight[0] = 0
    x[:1] = 0
    bias, residual = normal(seed + 2, n) if biased else None, normal(seed + 3, m, n) if added else None
    given_weight = (weight.view(np.uint32) >> 16).astype(np.uint16) if bf16 else weight
    results = []
    for module in (kernels, ops):
        linear, out = module.Linear(given_weight, mode, bias), np.empty((m, n), np.float32)
        linear.apply(x, out, residual)
        dense = np.empty((n, k), np.float32)
        linear.dequantize(dense)
        results.append((out, dense, linear.n, linear.k, linear.mode))
    (a, dense_a, *facts_a), (b, dense_b, *facts_b) = results
    assert facts_a == facts_b
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))
    assert np.array_equal(dense_a, dense_b)


def test_rows_are_quantised_with_one_rounding_per_operation() -> None:
    """Values half-way between two int8 steps: a reciprocal that is rounded twice picks the other one."""
    top = np.abs(normal(0, 4096, 1)) + 0.01
    x = np.concatenate([top, top * ((np.arange(126, dtype=np.float32) + 0.5) / 127)], axis=1)
    data, scales = np.empty(x.shape, np.int8), np.empty(len(x), np.float32)
    kernels.quantize(x, data, scales)
    values, row_scales = quantise_rows(torch.from_numpy(x))
    assert np.array_equal(scales, row_scales.numpy())
    assert np.array_equal(data, values.numpy())
    assert np.array_equal(data, np.rint(x * (np.float32(127) / top)).astype(np.int8))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_poisoned_row_is_nan_in_both(bad: float) -> None:
    x = normal(0, 3, 64)
    x[1, 5] = bad
    for module in (kernels, ops):
        out = np.empty((3, 8), np.float32)
        module.Linear(normal(1, 8, 64), "int8", None).apply(x, out)
        assert np.isnan(out).all(1).tolist() == [False, True, False]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["int8", "int4", "bf16", "fp32"]), st.booleans())
@example(305, "int4", False)
def test_a_model_in_chunks(seed: int, mode: str, normed: bool) -> None:
    """Two layers, three tokens, then two, then one: hidden states, logits and KV pools agree bit for bit."""
    heads, kv_heads, hd, hidden, inter, vocab = 4, 2, 16, 48, 40, 30
    angle = np.outer(np.arange(8), 0.3 ** np.arange(hd // 2))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    results = []
    for module in (kernels, ops):
        layers = []
        for i in range(2):
            at = seed + 100 * i
            layers.append(
                module.DecoderLayer(
                    module.Linear(normal(at, (heads + 2 * kv_heads) * hd, hidden) / 7, mode, None),
                    module.Linear(normal(at + 1, hidden, heads * hd) / 7, mode, None),
                    module.Linear(normal(at + 2, 2 * inter, hidden) / 7, mode, None),
                    module.Linear(normal(at + 3, hidden, inter) / 7, mode, None),
                    *(normal(at + 4, 2, hidden)),
                    *(normal(at + 5, 2, hd) if normed else (None, None)),
                    1e-6,
                    heads,
                    kv_heads,
                    hd,
                )
            )
        pool = np.zeros((2, 2, 2, kv_heads, 16 * hd), np.float32 if mode == "fp32" else np.uint16)
        table, outputs = normal(seed + 9, vocab, hidden), [pool]
        output_matrix = module.Linear(table, "int8" if mode == "int4" else mode, None)
        for low, high in ((0, 3), (3, 5), (5, 6)):
            rows = high - low
            x, logits = np.empty((rows, hidden), np.float32), np.empty((rows, vocab), np.float32)
            q = np.empty((rows, heads * hd), np.float32)
            mixed, lse = np.empty_like(q), np.empty((rows, heads), np.float32)
            positions = np.arange(low, high, dtype=np.int32)
            module.embed(table, positions, x)
            for i, layer in enumerate(layers):
                layer.before_attention(x, cos, sin, positions, positions + np.int64(16), pool, i, q)
                blocks, start = np.array([[1]], np.int32), np.array([0, rows], np.int32)
                context = np.array([high], np.int32)
                module.attention(q.reshape(rows, heads, hd), pool, i, blocks, start, context, 0.25, mixed, lse)
                layer.after_attention(x, mixed)
            module.head(x, np.ones(hidden, np.float32), 1e-6, output_matrix, logits)
            outputs += [x, mixed, lse, logits]
        results.append(outputs)
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
        assert np.isfinite(a).all()
