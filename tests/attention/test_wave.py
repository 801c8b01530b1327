"""The wave index against float64: exact where it must be, and where it estimates, the estimate that is written down."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.attention.wave import Segment, WaveConfig, WaveIndex
from statepool.native import kernels

if kernels is None:
    pytest.skip("needs the native module", allow_module_level=True)

SMALL = {"update_segment": 64, "segment": 256, "local": 16, "shortest": 0, "iterations": 4, "least": 0}


def tokens(seed: int, heads: int, count: int, width: int, bf16: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Keys with some neighbourhoods in them, and values."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((heads, max(count // 12, 1), width)) * 2
    keys = centres[:, rng.integers(0, centres.shape[1], count)] + rng.standard_normal((heads, count, width))
    pair = keys.astype(np.float32), rng.standard_normal((heads, count, width)).astype(np.float32)
    return tuple(bits(x) for x in pair) if bf16 else pair  # type: ignore[return-value]


def bits(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()


def wide(x: np.ndarray) -> np.ndarray:
    """float64 of float32 or bf16 bits."""
    return (torch.from_numpy(x).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)).double().numpy()


def dense(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """torch's attention in float64, and the logarithm of its denominator."""
    k, v = torch.from_numpy(wide(keys)), torch.from_numpy(wide(values))
    q = torch.from_numpy(query.astype(np.float64)).reshape(len(k), -1, k.shape[2])
    out = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    scores = torch.einsum("hgd,hnd->hgn", q, k) / math.sqrt(k.shape[2])
    return out.reshape(query.shape).numpy(), torch.logsumexp(scores, -1).flatten().numpy()


def queries(seed: int, heads: int, width: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((heads, width)) * 1.5).astype(np.float32)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("heads", "group", "width", "count"), [(2, 1, 16, 700), (1, 7, 64, 301), (3, 4, 128, 97), (2, 8, 48, 5)]
)
def test_reading_every_cluster_is_attention(bf16, heads, group, width, count):
    keys, values = tokens(1, heads, count, width, bf16)
    index = WaveIndex.build(keys, values, WaveConfig(**SMALL, retrieve=1.0, estimate=0.0))
    query = queries(2, heads * group, width)
    out, lse = dense(query, keys, values)
    got = index.decode(query, trace=True)
    np.testing.assert_allclose(got.out, out, atol=1e-5)
    np.testing.assert_allclose(got.lse, lse, atol=1e-5)
    assert index.cost(got.zones).tokens == heads * count


@pytest.mark.parametrize("estimator", ["mean", "iso2", "diag2"])
def test_clusters_of_equal_keys_are_estimated_exactly(estimator):
    """Sixteen copies of each key: no estimate errs, whatever the values are."""
    rng = np.random.default_rng(3)
    distinct = rng.standard_normal((2, 32, 32)).astype(np.float32) * 3
    keys = np.repeat(distinct, 16, axis=1)
    values = rng.standard_normal(keys.shape).astype(np.float32)
    config = WaveConfig(
        update_segment=512, segment=512, local=0, sink=0, retrieve=0.0, least=0, estimate=1.0, estimator=estimator
    )
    index = WaveIndex.build(keys, values, config)
    query = queries(4, 4, 32)
    np.testing.assert_allclose(index.decode(query).out, dense(query, keys, values)[0], atol=2e-5)


def estimate(config: WaveConfig, segment: Segment, head: int, c: int, query: np.ndarray, scale: float) -> float:
    """The logarithm of a cluster's mass as docs/attention.md writes it, in float64."""
    centroid = wide(segment.centroids)[head, c // 16, :, c % 16]
    score, log_n = scale * query @ centroid, float(segment.log_size[head, c])
    if config.estimator == "mean":
        return score + log_n
    if config.estimator == "iso2":
        variance = scale**2 * (query @ query) * float(segment.spread[head, c])
    else:
        variance = scale**2 * (query**2) @ wide(segment.variances)[head, c // 16, :, c % 16]
    return score + log_n + (variance / 2 if variance <= 2 * log_n else math.sqrt(2 * variance * log_n) - log_n)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("estimator", ["mean", "iso2", "diag2"])
@pytest.mark.parametrize("rank", ["softmax", "mass"])
def test_the_three_zones(bf16, estimator, rank):
    heads, group, width, count = 2, 3, 32, 900
    config = WaveConfig(**SMALL, retrieve=0.1, estimate=0.4, estimator=estimator, rank=rank)
    keys, values = tokens(5, heads, count, width, bf16)
    index = WaveIndex.build(keys, values, config)
    query, scale = queries(6, heads * group, width), width**-0.5
    got = index.decode(query, trace=True)
    read, estimated = index._view.budget()
    assert [(z == 2).sum() for z in got.zones] == [read] * heads
    assert [(z == 1).sum() for z in got.zones] == [estimated] * heads
    k, v, q = wide(keys), wide(values), query.astype(np.float64).reshape(heads, group, width)
    for head in range(heads):
        logits, seen = np.empty((group, got.zones.shape[1])), []
        place = 0
        for segment in index.segments:
            for c in range(segment.clusters):
                filled = segment.offsets[head, c] < segment.offsets[head, c + 1]
                for g in range(group):
                    logits[g, place] = estimate(config, segment, head, c, q[head, g], scale) if filled else -np.inf
                members = segment.order[head, segment.offsets[head, c] : segment.offsets[head, c + 1]] + segment.start
                seen.append((members, wide(segment.means)[head, c], float(segment.log_size[head, c])))
                place += 1
        sizes = np.array([size for _, _, size in seen])
        ranked = logits if rank == "mass" else logits - np.where(np.isfinite(sizes), sizes, 0.0)
        score = np.exp(ranked - ranked.max(1, keepdims=True))
        score = (score / score.sum(1, keepdims=True)).sum(0)
        zones = got.zones[head]
        assert score[zones == 2].min() >= score[zones != 2].max() * (1 - 1e-5)
        assert score[zones >= 1].min() >= score[zones == 0].max() * (1 - 1e-5)
        exact = np.concatenate(
            [np.arange(config.sink), *(m for (m, _, _), z in zip(seen, zones, strict=True) if z == 2),
             np.arange(config.indexed(count), count)]
        )  # fmt: skip
        means = np.array([mean for (_, mean, _), z in zip(seen, zones, strict=True) if z == 1])
        for g in range(group):
            x = np.concatenate([scale * k[head, exact] @ q[head, g], logits[g, zones == 1]])
            p = np.exp(x - x.max())
            out = p @ np.concatenate([v[head, exact], means]) / p.sum()
            np.testing.assert_allclose(got.out[head * group + g], out, atol=2e-5)
            assert got.lse[head * group + g] == pytest.approx(x.max() + math.log(p.sum()), abs=2e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_segment_holds_what_it_says(bf16):
    keys, values = tokens(7, 3, 512, 32, bf16)
    config = WaveConfig(update_segment=512, segment=512, estimator="diag2")
    segment = Segment.build(keys, values, 0, config)
    assert segment.pinned == 4
    for name, array in zip(("keys", "values"), segment.tokens(), strict=True):
        np.testing.assert_array_equal(array, keys if name == "keys" else values)
    k, v = wide(keys), wide(values)
    rounding = 2**-8 if bf16 else 1e-6
    for head in range(3):
        assert sorted(segment.order[head]) == list(range(512))
        assert list(segment.order[head, :4]) == [0, 1, 2, 3]
        assert segment.offsets[head, 0] == 4
        assert segment.offsets[head, -1] == 512
        for c in range(segment.clusters):
            members = segment.order[head, segment.offsets[head, c] : segment.offsets[head, c + 1]]
            if not len(members):
                assert segment.log_size[head, c] == -np.inf
                continue
            assert list(members) == sorted(members)
            centroid = wide(segment.centroids)[head, c // 16, :, c % 16]
            mean = wide(segment.means)[head, c]
            np.testing.assert_allclose(centroid, k[head, members].mean(0), rtol=rounding, atol=1e-5)
            np.testing.assert_allclose(mean, v[head, members].mean(0), rtol=rounding, atol=1e-5)
            off = ((k[head, members] - centroid) ** 2).sum(1)
            assert segment.reach[head, c] >= math.sqrt(off.max())
            assert segment.reach[head, c] == pytest.approx(math.sqrt(off.max()), rel=1e-5, abs=1e-6)
            assert segment.value_reach[head, c] >= math.sqrt(((v[head, members] - mean) ** 2).sum(1).max())
            assert segment.spread[head, c] == pytest.approx(off.mean() / 32, rel=1e-4, abs=1e-6)
            variance = wide(segment.variances)[head, c // 16, :, c % 16]
            np.testing.assert_allclose(
                variance, ((k[head, members] - centroid) ** 2).mean(0), rtol=2 * rounding, atol=1e-5
            )


def lloyd(keys: np.ndarray, clusters: int, rounds: int) -> float:
    """Mean cosine to the own centroid after spherical k-means in float64 from the same start."""
    y = keys - keys.mean(0)
    centroids = y[[(2 * c + 1) * len(y) // (2 * clusters) for c in range(clusters)]]
    for _ in range(rounds):
        best = (y @ centroids.T).argmax(1)
        for c in range(clusters):
            total = y[best == c].sum(0)
            if np.linalg.norm(total) > 0:
                centroids[c] = total / np.linalg.norm(total)
    return float((y * centroids[(y @ centroids.T).argmax(1)]).sum(1).mean())


def test_clusters_are_as_good_as_those_of_exact_k_means():
    keys, values = tokens(8, 1, 1024, 64)
    config = WaveConfig(update_segment=1024, segment=1024, sink=0)
    segment = Segment.build(keys, values, 0, config)
    y = wide(keys)[0] - wide(keys)[0].mean(0)
    found = 0.0
    for c in range(segment.clusters):
        members = segment.order[0, segment.offsets[0, c] : segment.offsets[0, c + 1]]
        if len(members):
            total = y[members].sum(0)
            found += float(np.linalg.norm(total))
    assert found / len(y) >= 0.99 * lloyd(wide(keys)[0], 64, 9)


@given(st.integers(0, 40), st.integers(0, 5))
def test_borders_are_a_function_of_the_end(units, doublings):
    config = WaveConfig(update_segment=64, segment=64 << doublings)
    borders = config.segments(units * 64)
    assert [start for start, _ in borders] == [0, *(stop for _, stop in borders)][: len(borders)]
    assert sum(stop - start for start, stop in borders) == units * 64
    for start, stop in borders:
        assert start % (stop - start) == 0
        assert stop - start <= config.segment
        # Merged as far as alignment lets it: no two neighbours could be one.
    for (a, b), (_, c) in pairwise(borders):
        assert not (c - b == b - a < config.segment and a % (c - a) == 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=8), st.integers(0, 3), st.booleans())
def test_growing_anyhow_and_going_back_changes_no_bit(steps, seed, bf16):
    total = sum(steps)
    keys, values = tokens(seed, 2, total, 32, bf16)
    query = queries(seed, 4, 32)
    config = WaveConfig(**SMALL, retrieve=0.2, estimate=0.3)
    grown = WaveIndex(2, 32, keys.dtype, config)
    at = 0
    for step in steps:
        grown.append(keys[:, at : at + step], values[:, at : at + step])
        at += step
    whole = WaveIndex.build(keys, values, config)
    assert len(grown) == len(whole) == total
    assert grown.decode(query).out.tobytes() == whole.decode(query).out.tobytes()
    back = max(total - steps[-1], 1)
    grown.rollback(back)
    assert len(grown) == back
    shorter = WaveIndex.build(keys[:, :back], values[:, :back], config)
    assert grown.decode(query).out.tobytes() == shorter.decode(query).out.tobytes()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8])
def test_the_same_bits_on_every_instruction_set_and_any_threads(bf16, group):
    keys, values = tokens(9, 2, 600, 80, bf16)
    query = queries(10, 2 * group, 80)
    best, threads = kernels.isa(), kernels.threads()
    results = set()
    try:
        for isa in ("generic", "avx2", "avx512", "amx"):
            for count in (1, 2):
                try:
                    kernels.set_isa(isa)
                except ValueError:
                    continue
                kernels.set_threads(count)
                index = WaveIndex.build(keys, values, WaveConfig(**SMALL, estimator="diag2", retrieve=0.1))
                got = index.decode(query, trace=True)
                arrays = [got.out, got.lse, got.zones]
                for segment in index.segments:
                    arrays += [
                        segment.centroids,
                        segment.means,
                        segment.rows,
                        segment.order,
                        segment.reach,
                        segment.spread,
                    ]
                results.add(b"".join(array.tobytes() for array in arrays))
    finally:
        kernels.set_isa(best)
        kernels.set_threads(threads)
    assert len(results) == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_head_alone_has_the_bits_it_has_among_others(threads):
    """Heads of a thread follow each other closely: what is known of one must not leak into the next."""
    keys, values = tokens(23, 5, 800, 48)
    query, before = queries(24, 10, 48), kernels.threads()
    config = WaveConfig(**SMALL, retrieve=0.1, estimate=0.3)
    kernels.set_threads(threads)
    try:
        together = WaveIndex.build(keys, values, config).decode(query, trace=True)
        for head in range(5):
            index = WaveIndex.build(keys[head : head + 1], values[head : head + 1], config)
            alone = index.decode(query[2 * head : 2 * head + 2], trace=True)
            assert alone.out.tobytes() == together.out[2 * head : 2 * head + 2].tobytes()
            assert alone.zones.tobytes() == together.zones[head].tobytes()
    finally:
        kernels.set_threads(before)


def adversary(kind: str, rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Keys that make estimates wrong: far outliers, two opposite camps, one direction, or none at all."""
    keys = rng.standard_normal((1, count, width))
    if kind == "outliers":
        keys[:, rng.integers(0, count, 5)] *= 8
    elif kind == "camps":
        keys = np.sign(keys[:, :, :1]) * np.ones(width) + 0.05 * keys
    elif kind == "line":
        keys = np.linspace(-3, 3, count)[None, :, None] * np.ones(width)
    elif kind == "tiny":
        keys *= 1e-3
    return keys.astype(np.float32)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("estimator", ["mean", "iso2", "diag2"])
@pytest.mark.parametrize("kind", ["plain", "outliers", "camps", "line", "tiny"])
def test_the_proved_error_is_never_exceeded(kind, estimator, bf16):
    rng = np.random.default_rng(20)
    keys = adversary(kind, rng, 700, 32)
    values = rng.standard_normal(keys.shape).astype(np.float32)
    if bf16:
        keys, values = bits(keys), bits(values)
    index = WaveIndex.build(keys, values, WaveConfig(**SMALL, retrieve=0.05, estimate=0.5, estimator=estimator))
    for seed in range(6):
        query = queries(seed, 4, 32) * 10 ** rng.uniform(-1, 0.7)
        exact = dense(query, keys, values)[0]
        for eps in (1e9, 0.3, 0.01):
            got = index.decode_within(query, eps)
            assert (np.linalg.norm(got.out - exact, axis=1) <= got.error).all()
            assert (
                got.error.max() <= eps
                or (got.zones[np.isfinite(np.concatenate([s.log_size for s in index.segments], 1))] == 2).all()
            )


def test_a_peaked_head_is_proved_with_little_read_and_a_flat_one_reads_all():
    rng = np.random.default_rng(21)
    centres = np.repeat(rng.standard_normal((1, 256, 32)) * 2, 16, axis=1)
    keys = (centres + 0.1 * rng.standard_normal(centres.shape)).astype(np.float32)
    values = rng.standard_normal(keys.shape).astype(np.float32)
    index = WaveIndex.build(keys, values, WaveConfig(update_segment=1024, segment=4096, least=0))
    needle = keys[0, 1234] / np.linalg.norm(keys[0, 1234])
    peaked = index.decode_within((needle * 20)[None].astype(np.float32), 0.05)
    flat = index.decode_within(np.full((1, 32), 0.01, np.float32), 1e-6)
    assert index.cost(peaked.zones).tokens < 0.3 * 4096
    assert index.cost(flat.zones).tokens == 4096


def test_equal_beginnings_have_equal_segments():
    keys, values = tokens(11, 2, 900, 32)
    other_keys, other_values = tokens(12, 2, 900, 32)
    other_keys[:, :700], other_values[:, :700] = keys[:, :700], values[:, :700]
    one, other = (WaveIndex.build(*pair, WaveConfig(**SMALL)) for pair in ((keys, values), (other_keys, other_values)))
    shared = [(a, b) for a, b in zip(one.segments, other.segments, strict=True) if a.stop <= 700]
    assert len(shared) >= 2
    for a, b in shared:
        assert (a.start, a.stop) == (b.start, b.stop)
        for name in ("centroids", "means", "rows", "order", "offsets", "log_size", "reach"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


def test_a_short_context_is_read_whole():
    keys, values = tokens(22, 1, 1088, 16)
    assert not WaveIndex.build(keys[:, :1087], values[:, :1087]).segments
    assert WaveIndex.build(keys, values).segments[-1].stop == 1024


class TestOddInput:
    def test_fewer_tokens_than_sink_and_local(self):
        keys, values = tokens(13, 1, 3, 16)
        index = WaveIndex.build(keys, values)
        query = queries(1, 2, 16)
        assert not index.segments
        np.testing.assert_allclose(index.decode(query).out, dense(query, keys, values)[0], atol=1e-6)

    def test_equal_keys_everywhere(self):
        keys = np.ones((1, 400, 16), np.float32)
        values = np.random.default_rng(0).standard_normal(keys.shape).astype(np.float32)
        index = WaveIndex.build(keys, values, WaveConfig(**SMALL, estimate=1.0, retrieve=0.0))
        np.testing.assert_allclose(index.decode(queries(1, 1, 16)).out[0], values[0].mean(0), atol=1e-5)

    def test_one_giant_cluster(self):
        keys, values = tokens(14, 1, 2048, 16)
        keys[:, :2000] = keys[:, :1] + 1e-4 * keys[:, :2000]
        index = WaveIndex.build(keys, values, WaveConfig(update_segment=2048, segment=2048, local=0, retrieve=1.0))
        assert np.exp(max(s.log_size.max() for s in index.segments)) > 64 * 8
        query = queries(1, 1, 16)
        np.testing.assert_allclose(index.decode(query).out, dense(query, keys, values)[0], atol=1e-5)

    def test_a_zero_query_weighs_all_keys_alike(self):
        keys, values = tokens(15, 1, 500, 16)
        index = WaveIndex.build(keys, values, WaveConfig(**SMALL, retrieve=0.5, estimate=0.5, estimator="mean"))
        np.testing.assert_allclose(index.decode(np.zeros((1, 16), np.float32)).out[0], values[0].mean(0), atol=1e-5)

    @pytest.mark.parametrize("rank", ["softmax", "mass"])
    def test_of_clusters_that_rank_alike_the_first_are_chosen(self, rank):
        """Groups of equal keys, so that clusters with keys have as many, and some of those asked for have none."""
        keys = np.repeat(np.random.default_rng(25).standard_normal((1, 32, 16)), 16, axis=1).astype(np.float32)
        config = WaveConfig(
            update_segment=512, segment=512, local=0, sink=0, shortest=0, retrieve=0.25, estimate=0.5, least=0,
            tokens_per_cluster=10, estimator="mean", rank=rank,
        )  # fmt: skip
        index = WaveIndex.build(keys, keys, config)
        zones = index.decode(np.zeros((2, 16), np.float32), trace=True).zones[0]
        sizes = np.diff(index.segments[0].offsets[0])
        filled = np.flatnonzero(sizes)
        assert len(filled) < len(zones)
        # By mass, larger clusters come first; within a size, earlier ones.
        ranked = sorted(filled.tolist(), key=lambda c: (-sizes[c] if rank == "mass" else 0, c))
        read, estimated = config.budget(config.clusters(0, 512))
        assert np.flatnonzero(zones == 2).tolist() == sorted(ranked[:read])
        assert np.flatnonzero(zones == 1).tolist() == sorted(ranked[read : read + estimated])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("bf16", [False, True])
    @pytest.mark.parametrize("where", ["keys", "values"])
    def test_a_number_that_is_none_is_refused_by_its_token(self, bad, bf16, where):
        keys, values = tokens(16, 2, 300, 16)
        spoiled = keys if where == "keys" else values
        spoiled[1, 123, 5] = spoiled[0, 200, 0] = bad
        if bf16:
            keys, values = bits(keys), bits(values)
        index = WaveIndex.build(keys[:, :100], values[:, :100], WaveConfig(**SMALL))
        with pytest.raises(InvalidRequest, match=f"{where}: token 123 holds NaN or infinity"):
            index.append(keys[:, 100:], values[:, 100:])
        assert len(index) == 100

    def test_shapes_that_do_not_fit(self):
        keys, values = tokens(17, 2, 64, 32)
        with pytest.raises(InvalidRequest, match="keys and values must both be"):
            WaveIndex.build(keys, values[:, 1:])
        with pytest.raises(InvalidRequest, match="multiple of 16"):
            WaveIndex.build(np.ascontiguousarray(keys[:, :, :20]), np.ascontiguousarray(values[:, :, :20]))
        with pytest.raises(InvalidRequest, match="float32"):
            WaveIndex.build(keys.astype(np.float64), values.astype(np.float64))
        index = WaveIndex.build(keys, values)
        with pytest.raises(InvalidRequest, match=r"keys must be \[2, tokens, 32\]"):
            index.append(keys[:1], values[:1])
        with pytest.raises(InvalidRequest, match="query must be"):
            index.decode(queries(1, 3, 32))
        with pytest.raises(InvalidRequest, match="NaN"):
            index.decode(np.full((2, 32), np.nan, np.float32))
        with pytest.raises(InvalidRequest, match="between 0 and 64"):
            index.rollback(65)
        with pytest.raises(InvalidRequest, match="empty"):
            WaveIndex(1, 16, np.float32, WaveConfig()).decode(queries(1, 1, 16))

    def test_budget(self):
        config = WaveConfig(retrieve=0.1, estimate=0.5, least=16)
        assert [config.budget(n) for n in (0, 9, 40, 160, 1000)] == [(0, 0), (9, 0), (16, 20), (16, 80), (100, 500)]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"retrieve": 1.5}, "retrieve must be between 0 and 1"),
            ({"segment": 3000}, "times a power of two"),
            ({"update_segment": 16}, "at least two clusters"),
            ({"iterations": 0}, "iterations must be at least 1"),
            ({"sink": -1}, "sink must not be negative"),
            ({"shortest": -1}, "shortest must not be negative"),
            ({"least": -1}, "least must not be negative"),
            ({"estimator": "cubic"}, "mean, iso2, diag2"),
            ({"rank": "luck"}, "softmax or mass"),
        ],
    )
    def test_settings(self, change, message):
        with pytest.raises(InvalidConfig, match=message):
            WaveConfig(**change)
