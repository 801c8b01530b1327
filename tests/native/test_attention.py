"""Paged attention: against dense float64 softmax, against the torch twin bit for bit, and against itself cut anyhow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.engine.ops import reference
from statepool.native import kernels

PAGE, SEGMENT = 16, 1024

if kernels is None:
    pytest.skip("needs the native module", allow_module_level=True)


class Case:
    """Requests with random contexts over a shuffled pool; bytes no token owns are NaN."""

    def __init__(self, seed: int, head_dim: int, kv_heads: int, group: int, lengths: list[tuple[int, int]], bf16: bool):
        rng = np.random.default_rng(seed)
        self.head_dim, self.kv_heads, self.heads, self.bf16 = head_dim, kv_heads, kv_heads * group, bf16
        self.layers, self.layer = 2, 1
        self.rows = [rows for rows, _ in lengths]
        self.context = np.array([context for _, context in lengths], np.int32)
        self.start = np.concatenate([[0], np.cumsum(self.rows)]).astype(np.int32)
        pages = [-(-int(context) // PAGE) for context in self.context]
        blocks = rng.permutation(sum(pages) + 2).astype(np.int32)
        self.tables = np.full((len(lengths), max(pages, default=0)), -7, np.int32)
        nan = np.full((len(blocks), self.layers, 2, kv_heads, PAGE * head_dim), np.nan, np.float32)
        self.keys = [rng.standard_normal((n, kv_heads, head_dim)).astype(np.float32) for n in self.context]
        self.values = [rng.standard_normal((n, kv_heads, head_dim)).astype(np.float32) for n in self.context]
        self.pool = bits(nan) if bf16 else nan
        for r, count in enumerate(pages):
            self.tables[r, :count], blocks = blocks[:count], blocks[count:]
            token = np.arange(self.context[r])
            slots = self.tables[r, token // PAGE].astype(np.int64) * PAGE + token % PAGE
            k, v = torch.from_numpy(self.keys[r]), torch.from_numpy(self.values[r])
            reference.scatter_kv(k, v, slots, self.pool, self.layer)
        self.q = rng.standard_normal((int(self.start[-1]), self.heads, head_dim)).astype(np.float32) * 2
        self.scale = float(np.float32(head_dim**-0.5))

    def run(self, ops: object = kernels) -> tuple[np.ndarray, np.ndarray]:
        return self.call(self.q, self.tables, self.start, self.context, ops)

    def call(self, q, tables, start, context, ops=kernels):  # type: ignore[no-untyped-def]
        out = np.full((len(q), self.heads * self.head_dim), np.nan, np.float32)
        lse = np.full((len(q), self.heads), np.nan, np.float32)
        ops.attention(q, self.pool, self.layer, tables, start, context, self.scale, out, lse)
        return out, lse

    def row(self, r: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Row i of request r as a decode step of its own."""
        at = int(self.start[r]) + i
        context = np.array([self.context[r] - self.rows[r] + i + 1], np.int32)
        return self.call(self.q[at : at + 1], self.tables[r : r + 1], np.array([0, 1], np.int32), context)

    def dense(self) -> np.ndarray:
        """torch's scaled dot product attention in float64."""
        outs = []
        for r, rows in enumerate(self.rows):
            n = int(self.context[r])
            k, v = (round_bf16(x) if self.bf16 else x for x in (self.keys[r], self.values[r]))
            k, v = (torch.from_numpy(x).double().transpose(0, 1) for x in (k, v))
            q = torch.from_numpy(self.q[self.start[r] : self.start[r + 1]]).double().transpose(0, 1)
            mask = torch.arange(n)[None] <= torch.arange(n - rows, n)[:, None]
            one = torch.nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, scale=self.scale, enable_gqa=True
            )
            outs.append(one[0].transpose(0, 1).flatten(1).numpy())
        return np.concatenate(outs)


def bits(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()


def round_bf16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).bfloat16().float().numpy()


def same(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(x.view(np.uint32), y.view(np.uint32)) for x, y in zip(a, b, strict=True))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = kernels.threads()
    kernels.set_threads(1)
    yield
    kernels.set_threads(before)


@st.composite
def cases(draw: st.DrawFn, longest: int = 70, requests: int = 3) -> Case:
    lengths = []
    for _ in range(draw(st.integers(1, requests))):
        context = draw(st.integers(1, longest))
        lengths.append((draw(st.integers(0, min(context, 40))), context))
    head_dim = 16 * draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    return Case(
        draw(st.integers(0, 2**32)),
        head_dim,
        draw(st.integers(1, 3)),
        draw(st.integers(1, 5)),
        lengths,
        draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(cases())
def test_equals_dense_attention_in_float64(case: Case) -> None:
    out, lse = case.run()
    assert np.allclose(out, case.dense(), rtol=0, atol=4e-6)
    assert np.isfinite(lse).all()


@settings(max_examples=25, deadline=None)
@given(cases(longest=50, requests=2))
def test_bits_equal_the_torch_twin(case: Case) -> None:
    assert same(case.run(), case.run(reference))


@settings(max_examples=30, deadline=None)
@given(cases())
def test_a_row_alone_has_the_bits_it_has_in_the_batch(case: Case) -> None:
    out, lse = case.run()
    for r, rows in enumerate(case.rows):
        for i in range(rows):
            at = int(case.start[r]) + i
            assert same(case.row(r, i), (out[at : at + 1], lse[at : at + 1]))


LONG = [(2, 1024), (1, 1025), (21, 1040), (9, 2100), (1, 5)]


@pytest.fixture(scope="module", params=[True, False], ids=["bf16", "float32"])
def long_case(request: pytest.FixtureRequest) -> Case:
    return Case(7, 16, 2, 2, LONG, request.param)


def test_long_contexts_equal_dense_attention(long_case: Case) -> None:
    assert np.allclose(long_case.run()[0], long_case.dense(), rtol=0, atol=4e-6)


def test_long_contexts_equal_the_torch_twin(long_case: Case) -> None:
    assert same(long_case.run(), long_case.run(reference))


def test_chunks_equal_the_whole_prefill(long_case: Case) -> None:
    out, lse = long_case.run()
    for r, rows in enumerate(long_case.rows):
        low, first = 0, int(long_case.start[r])
        for size in (1, 7, 64):
            high = min(rows, low + size)
            context = np.array([long_case.context[r] - rows + high], np.int32)
            start = np.array([0, high - low], np.int32)
            q = long_case.q[first + low : first + high]
            chunk = long_case.call(q, long_case.tables[r : r + 1], start, context)
            assert same(chunk, (out[first + low : first + high], lse[first + low : first + high]))
            low = high


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_change_no_bit(long_case: Case, threads: int) -> None:
    alone = long_case.run()
    decode = [long_case.row(r, rows - 1) for r, rows in enumerate(long_case.rows)]
    kernels.set_threads(threads)
    assert same(long_case.run(), alone)
    for r, rows in enumerate(long_case.rows):
        assert same(long_case.row(r, rows - 1), decode[r])


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "amx"])
def test_instruction_sets_agree(long_case: Case, isa: str) -> None:
    best = kernels.isa()
    expected = long_case.run()
    try:
        kernels.set_isa(isa)
    except ValueError:
        pytest.skip(f"this machine lacks {isa}")
    try:
        assert same(long_case.run(), expected)
    finally:
        kernels.set_isa(best)


def test_ranges_of_segments_merge_to_the_bits_of_the_whole(long_case: Case) -> None:
    case = long_case
    whole = case.run()
    rows, segments = len(case.q), -(-int(case.context.max()) // SEGMENT)
    for cut in range(1, segments):
        parts = []
        for first, last in ((0, cut), (cut, segments)):
            shape = (rows, case.heads, last - first)
            m, l, acc = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty((*shape, 16), np.float32)
            kernels.attention_segments(
                case.q, case.pool, case.layer, case.tables, case.start, case.context, case.scale, first, m, l, acc
            )
            parts.append((m, l, acc))
        m, l, acc = (np.ascontiguousarray(np.concatenate(x, axis=2)) for x in zip(*parts, strict=True))
        out, lse = np.empty_like(whole[0]), np.empty_like(whole[1])
        kernels.merge_segments(m, l, acc, out, lse)
        assert same((out, lse), whole)


def test_segments_folded_one_by_one_give_the_bits_of_the_whole(long_case: Case) -> None:
    case = long_case
    rows, segments = len(case.q), -(-int(case.context.max()) // SEGMENT)
    for ops in (kernels, reference):
        whole: list[np.ndarray] = []
        for segment in range(segments):
            shape = (rows, case.heads, 1)
            part = [np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty((*shape, 16), np.float32)]
            ops.attention_segments(
                case.q, case.pool, case.layer, case.tables, case.start, case.context, case.scale, segment, *part
            )
            flat = [np.ascontiguousarray(a[:, :, 0]) for a in part]
            if whole:
                ops.fold_segments(*whole, *flat)
            else:
                whole = flat
        out, lse = case.run()
        got = np.empty_like(out), np.empty_like(lse)
        kernels.merge_segments(*(np.ascontiguousarray(a[:, :, None]) for a in whole), *got)
        assert same(got, (out, lse))


@pytest.mark.parametrize("token", [3, 1030, 2090], ids=["first segment", "second segment", "last segment"])
def test_a_score_that_is_not_a_number_reaches_the_output(token: int) -> None:
    """Whole pages of NaN too: a segment must not vanish because no maximum was found in it."""
    for count in (1, 1024):
        case = Case(3, 16, 1, 1, [(1, 2100)], False)
        nan = np.full((1, 16), np.nan, np.float32)
        for at in range(token // count * count, min(token // count * count + count, 2100)):
            slot = np.array([int(case.tables[0, at // PAGE]) * PAGE + at % PAGE])
            k, v = torch.from_numpy(nan[None]), torch.from_numpy(case.values[0][at][None])
            reference.scatter_kv(k, v, slot, case.pool, case.layer)
            case.keys[0][at] = np.nan
        assert np.isnan(case.dense()).all()
        for ops in (kernels, reference):
            out, lse = case.run(ops)
            assert np.isnan(out).all() and np.isnan(lse).all()


def test_zero_rows() -> None:
    case = Case(1, 16, 1, 1, [(0, 5)], True)
    assert case.run()[0].shape == (0, 16)


def test_bad_shapes_are_named() -> None:
    case = Case(1, 16, 1, 2, [(3, 20)], True)
    with pytest.raises(ValueError, match="block_tables: too few"):
        case.call(case.q, case.tables[:, :1].copy(), case.start, case.context)
    with pytest.raises(ValueError, match="block_tables: block number"):
        case.call(case.q, case.tables + 1000, case.start, case.context)
    with pytest.raises(ValueError, match="context_len"):
        case.call(case.q, case.tables, case.start, np.array([2], np.int32))
    with pytest.raises(ValueError, match="query_start"):
        case.call(case.q, case.tables, np.array([0, 2], np.int32), case.context)
    with pytest.raises(ValueError, match="q: head_dim"):
        case.call(np.zeros((3, 2, 32), np.float32), case.tables, case.start, case.context)
