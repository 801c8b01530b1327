"""The kernels in two halves, for attention that starts before keys and values are there: the bits of one call."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.native import kernels


@pytest.fixture
def threads():
    yield kernels.set_threads
    kernels.set_threads(1)


@st.composite
def cases(draw):
    """Requests of any context and chunk, over a pool of random pages with random tables."""
    requests = draw(st.lists(st.tuples(st.integers(0, 2100), st.integers(1, 40)), min_size=1, max_size=4))
    heads, group = draw(st.sampled_from([(1, 1), (2, 1), (2, 4), (1, 7)]))
    return requests, heads, group, draw(st.sampled_from(["bf16", "fp32"])), draw(st.integers(0, 99))


def build(case):
    requests, kv_heads, group, dtype, seed = case
    rng = np.random.default_rng(seed)
    contexts = np.array([old + new for old, new in requests], np.int32)
    pages = -(-contexts // 16)
    blocks = int(pages.sum())
    pool = rng.standard_normal((blocks, 2, 2, kv_heads, 16 * 16), np.float32)
    if dtype == "bf16":
        pool = (pool.view(np.uint32) >> 16).astype(np.uint16)
    order, tables = rng.permutation(blocks).astype(np.int32), np.zeros((len(requests), int(pages.max())), np.int32)
    at = 0
    for r, count in enumerate(pages.tolist()):
        tables[r, :count] = order[at : at + count]
        at += count
    start = np.concatenate([[0], np.cumsum([new for _, new in requests])]).astype(np.int32)
    q = rng.standard_normal((int(start[-1]), kv_heads * group, 16), np.float32)
    return q, pool, 1, tables, start, contexts, 0.25


@settings(max_examples=60)
@given(cases())
def test_two_halves_have_the_bits_of_one(case):
    q, pool, *rest = build(case)
    rows, heads, width = q.shape
    whole, out = np.empty((rows, heads * width), np.float32), np.empty((rows, heads * width), np.float32)
    kernels.attention(q, pool, *rest, whole)
    m, l = np.full((2, rows, heads, 2), np.nan, np.float32)
    acc = np.full((rows, heads, 2, width), np.nan, np.float32)
    hidden, nan = pool.copy(), np.uint16(0x7FC0) if pool.dtype == np.uint16 else np.nan
    layer, tables, start, contexts, _ = rest
    for r, context in enumerate(contexts.tolist()):  # what the first half must not read
        old = context - int(start[r + 1] - start[r])
        hidden[tables[r, old // 16 : -(-context // 16)], layer] = nan
    kernels.attention_begin(q, hidden, *rest, m, l, acc)
    kernels.attention_end(q, pool, *rest, m, l, acc, out)
    np.testing.assert_array_equal(out.view(np.uint32), whole.view(np.uint32))


def test_threads_and_instruction_sets(threads):
    q, pool, *rest = build(([(1030, 3), (17, 1)], 2, 2, "bf16", 1))
    rows, heads, width = q.shape
    found, best = [], kernels.isa()
    for isa, count in (("generic", 1), (best, 1), (best, 2)):
        kernels.set_isa(isa)
        threads(count)
        m, l = np.empty((2, rows, heads, 2), np.float32)
        acc, out = np.empty((rows, heads, 2, width), np.float32), np.empty((rows, heads * width), np.float32)
        kernels.attention_begin(q, pool, *rest, m, l, acc)
        kernels.attention_end(q, pool, *rest, m, l, acc, out)
        found.append(out.tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", ["int8", "int4", "bf16", "fp32"])
@pytest.mark.parametrize("normed", [True, False])
def test_queries_and_keys_apart(mode, normed):
    """Against ``before_attention``, whose keys lie in pages."""
    rng = np.random.default_rng(3)
    hidden, heads, kv_heads, width, rows = 64, 6, 2, 32, 21
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    shapes = {"qkv": (heads + 2 * kv_heads) * width, "o": hidden, "gate_up": 96, "down": hidden}
    inputs = {"qkv": hidden, "o": heads * width, "gate_up": hidden, "down": 48}
    bias = normal(shapes["qkv"])
    linears = {
        name: kernels.Linear(normal(n, inputs[name]), mode, bias if name == "qkv" else None)
        for name, n in shapes.items()
    }
    norms = [normal(hidden), normal(hidden), *((normal(width), normal(width)) if normed else (None, None))]
    names = ("input_norm", "post_norm", "q_norm", "k_norm")
    layer = kernels.DecoderLayer(
        **linears, **dict(zip(names, norms, strict=True)), eps=1e-6, heads=heads, kv_heads=kv_heads, head_dim=width
    )
    x, angle = normal(rows, hidden), np.outer(np.arange(64), 10.0 ** -np.linspace(0, 4, width // 2))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    positions = rng.integers(0, 64, rows).astype(np.int32)
    dtype = np.float32 if mode == "fp32" else np.uint16
    pool, q = np.zeros((2, 1, 2, kv_heads, 16 * width), dtype), np.empty((rows, heads * width), np.float32)
    slots = np.arange(rows, dtype=np.int64)
    layer.before_attention(x, cos, sin, positions, slots, pool, 0, q)
    apart, kv = np.empty_like(q), np.empty((rows, 2, kv_heads, width), dtype)
    layer.queries(x, cos, sin, positions, apart)
    layer.keys_values(x, cos, sin, positions, kv)
    np.testing.assert_array_equal(apart.view(np.uint32), q.view(np.uint32))
    keys = pool[:, 0, 0].reshape(2, kv_heads, width, 16).transpose(0, 3, 1, 2).reshape(32, kv_heads, width)[:rows]
    values = pool[:, 0, 1].reshape(2, kv_heads, 16, width).transpose(0, 2, 1, 3).reshape(32, kv_heads, width)[:rows]
    np.testing.assert_array_equal(kv[:, 0], keys)
    np.testing.assert_array_equal(kv[:, 1], values)
