"""The decoder layer around its attention: float64 formulas, the torch twin bit for bit, and rows that never meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.engine.ops import reference
from statepool.native import kernels

if kernels is None:
    pytest.skip("needs the native module", allow_module_level=True)

EPS = 1e-6


class TwinLinear:
    """The native matrix where the twin expects one: here the layer around it is under test."""

    def __init__(self, native: Any) -> None:
        self.native, self.n, self.k = native, native.n, native.k

    def apply(self, x: torch.Tensor, out: torch.Tensor) -> None:
        self.native.apply(x.numpy(), out.numpy())


class Case:
    """Random weights, rows, positions and slots of one layer."""

    def __init__(
        self,
        seed: int,
        mode: str,
        rows: int,
        head_dim: int,
        kv_heads: int,
        group: int,
        normed: bool,
        biased: bool,
        hidden: int = 64,
        inter: int = 80,
    ) -> None:
        rng = np.random.default_rng(seed)
        normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
        self.hidden, self.inter, self.head_dim, self.kv_heads = hidden, inter, head_dim, kv_heads
        self.heads = kv_heads * group
        qkv, wide = (self.heads + 2 * kv_heads) * head_dim, self.heads * head_dim
        self.weights = {
            "qkv": normal(qkv, self.hidden) / 8,
            "o": normal(self.hidden, wide) / 8,
            "gate_up": normal(2 * self.inter, self.hidden) / 8,
            "down": normal(self.hidden, self.inter) / 8,
        }
        self.bias = normal(qkv) if biased else None
        self.linears = {
            name: kernels.Linear(w, mode, self.bias if name == "qkv" else None) for name, w in self.weights.items()
        }
        self.norms = [normal(self.hidden), normal(self.hidden)]
        self.norms += [normal(head_dim), normal(head_dim)] if normed else [None, None]
        self.x = normal(rows, self.hidden) * 3
        self.attn = normal(rows, wide)
        angle = np.outer(np.arange(50), 10.0 ** -np.linspace(0, 4, head_dim // 2))
        self.cos, self.sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        self.positions = rng.integers(0, 50, rows).astype(np.int32)
        self.slots = rng.permutation(3 * 16 + rows)[:rows].astype(np.int64)
        self.blocks = 4 + rows // 16
        self.shape = dict(eps=EPS, heads=self.heads, kv_heads=kv_heads, head_dim=head_dim)

    def layer(self, ops: Any) -> Any:
        linears = self.linears if ops is kernels else {k: TwinLinear(v) for k, v in self.linears.items()}
        names = ("input_norm", "post_norm", "q_norm", "k_norm")
        return ops.DecoderLayer(**linears, **dict(zip(names, self.norms, strict=True)), **self.shape)

    def run(self, ops: Any, rows: slice = slice(None), bf16: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        layer, x = self.layer(ops), self.x[rows].copy()
        dtype = np.uint16 if bf16 else np.float32
        pool = np.zeros((self.blocks, 2, 2, self.kv_heads, 16 * self.head_dim), dtype)
        q = np.empty((len(x), self.heads * self.head_dim), np.float32)
        layer.before_attention(x, self.cos, self.sin, self.positions[rows], self.slots[rows], pool, 1, q)
        assert np.array_equal(x, self.x[rows])
        layer.after_attention(x, self.attn[rows])
        return q, pool, x


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in zip(a, b, strict=True))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = kernels.threads()
    kernels.set_threads(1)
    yield
    kernels.set_threads(before)


MODES = st.sampled_from(["int8", "int4", "bf16", "fp32"])
cases = st.builds(
    Case,
    st.integers(0, 2**32),
    MODES,
    st.integers(0, 20),
    st.sampled_from([16, 32, 48, 128]),
    st.integers(1, 2),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([63, 64, 138]),
    st.sampled_from([80, 77]),
)


@settings(max_examples=30, deadline=None)
@given(cases, st.booleans())
def test_bits_equal_the_torch_twin(case: Case, bf16: bool) -> None:
    assert same(case.run(kernels, bf16=bf16), case.run(reference, bf16=bf16))


@settings(max_examples=20, deadline=None)
@given(cases)
def test_a_row_alone_has_the_bits_it_has_in_the_batch(case: Case) -> None:
    q, pool, x = case.run(kernels)
    together = np.zeros_like(pool)
    for i in range(len(x)):
        one_q, one_pool, one_x = case.run(kernels, slice(i, i + 1))
        assert same((one_q, one_x), (q[i : i + 1], x[i : i + 1]))
        together |= one_pool
    assert same((together,), (pool,))


@pytest.mark.parametrize("mode", ["int8", "int4", "bf16", "fp32"])
def test_threads_and_instruction_sets_change_no_bit(mode: str) -> None:
    case = Case(3, mode, 150, 32, 2, 2, True, True)
    expected = case.run(kernels)
    kernels.set_threads(3)
    assert same(case.run(kernels), expected)
    kernels.set_threads(1)
    best = kernels.isa()
    for isa in ("generic", "avx2", "avx512", "amx"):
        try:
            kernels.set_isa(isa)
        except ValueError:
            continue
        try:
            assert same(case.run(kernels), expected)
        finally:
            kernels.set_isa(best)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_float_mode_equals_the_formulas_in_float64(seed: int, normed: bool, biased: bool) -> None:
    case = Case(seed, "fp32", 7, 32, 2, 2, normed, biased)
    q, pool, x = case.run(kernels, bf16=False)
    w = {name: torch.from_numpy(weight).double() for name, weight in case.weights.items()}
    norms = [None if n is None else torch.from_numpy(n).double() for n in case.norms]
    norm = lambda t, n: t if n is None else torch.nn.functional.rms_norm(t, (t.shape[-1],), n, EPS)  # noqa: E731
    rows = torch.from_numpy(case.x).double()
    qkv = torch.nn.functional.linear(
        norm(rows, norms[0]), w["qkv"], None if case.bias is None else torch.from_numpy(case.bias).double()
    )
    queries, keys, values = qkv.view(7, -1, 32).split([4, 2, 2], dim=1)
    phase = torch.complex(torch.from_numpy(case.cos).double(), torch.from_numpy(case.sin).double())[case.positions]

    def turn(t: torch.Tensor) -> torch.Tensor:
        turned = torch.complex(t[..., :16], t[..., 16:]) * phase[:, None]
        return torch.cat([turned.real, turned.imag], dim=-1)

    assert np.allclose(q, turn(norm(queries, norms[2])).flatten(1), rtol=0, atol=3e-5)
    k = turn(norm(keys, norms[3]))
    for i, slot in enumerate(case.slots):
        page = pool[slot // 16, 1]
        assert np.allclose(page[0].reshape(2, 32, 16)[:, :, slot % 16], k[i], rtol=0, atol=3e-5)
        assert np.allclose(page[1].reshape(2, 16, 32)[:, slot % 16], values[i], rtol=0, atol=3e-5)
    rows = rows + torch.from_numpy(case.attn).double() @ w["o"].T
    gate, up = (norm(rows, norms[1]) @ w["gate_up"].T).chunk(2, dim=-1)
    rows = rows + (torch.nn.functional.silu(gate) * up) @ w["down"].T
    assert np.allclose(x, rows, rtol=1e-5, atol=3e-5)


def test_head_is_the_final_norm_and_the_matrix() -> None:
    rng = np.random.default_rng(0)
    x, norm = rng.standard_normal((5, 64)).astype(np.float32), rng.standard_normal(64).astype(np.float32)
    linear = kernels.Linear(rng.standard_normal((40, 64)).astype(np.float32), "int8", None)
    normed, expected, logits, twin = (np.empty((5, n), np.float32) for n in (64, 40, 40, 40))
    kernels.rms_norm(x, norm, EPS, normed)
    linear.apply(normed, expected)
    kernels.head(x, norm, EPS, linear, logits)
    reference.head(x, norm, EPS, TwinLinear(linear), twin)
    assert same((logits, twin), (expected, expected))


@pytest.mark.parametrize("ops", [kernels, reference], ids=["native", "reference"])
def test_embed_widens_bf16_exactly(ops: Any) -> None:
    table = np.random.default_rng(1).standard_normal((9, 24)).astype(np.float32)
    tokens = np.array([8, 0, 8], np.int32)
    out = np.empty((3, 24), np.float32)
    ops.embed(table, tokens, out)
    assert np.array_equal(out, table[tokens])
    halves = (table.view(np.uint32) >> 16).astype(np.uint16)
    ops.embed(halves, tokens, out)
    assert np.array_equal(out.view(np.uint32), halves[tokens].astype(np.uint32) << 16)


def test_bad_arguments_are_named() -> None:
    case = Case(1, "int8", 3, 16, 1, 1, True, False)
    case.slots[0] = 16 * case.blocks
    with pytest.raises(ValueError, match="slots: outside the pool"):
        case.run(kernels)
    case.slots[0], case.positions[1] = 0, 50
    with pytest.raises(ValueError, match="positions: outside"):
        case.run(kernels)
    with pytest.raises(ValueError, match="tokens: id outside"):
        kernels.embed(np.zeros((2, 16), np.float32), np.array([2], np.int32), np.empty((1, 16), np.float32))
    case.linears["o"] = case.linears["down"]
    with pytest.raises(ValueError, match="o: k must be"):
        case.layer(kernels)
