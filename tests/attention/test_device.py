"""Triton's sparse attention against float64: without a GPU in Triton's interpreter, which proves logic alone."""

import importlib.util
import os

import pytest
import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

from tests.attention.test_moba import draw, masked, visible

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.attention.wave.config import WaveConfig
from statepool.train.moba import moba_attention

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
TYPES = [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 4e-2, 4e-4 * 10)]
"""With the largest and the mean distance from float64; the published test of MoBA allows 4e-2 for bf16."""


@needs_triton
@pytest.mark.parametrize(("dtype", "most", "mean"), TYPES)
@pytest.mark.parametrize(
    ("borders", "heads", "kv_heads", "width", "block", "topk", "select"),
    [
        ((0, 9, 9, 75), 2, 1, 20, 16, 2, "group"),
        ((0, 40), 2, 2, 16, 8, 3, "head"),
    ],
)
def test_blocks_and_their_gradients(borders, heads, kv_heads, width, block, topk, select, dtype, most, mean):
    tensors = [x.to(DEVICE).requires_grad_() for x in draw(1, borders[-1], heads, kv_heads, width, dtype)]
    out = moba_attention(*tensors, torch.tensor(borders), block, topk, select, kernels="triton")
    exact = [x.detach().cpu().double().requires_grad_() for x in tensors]
    seen = visible(tensors[0].detach().cpu(), tensors[1].detach().cpu(), borders, block, topk, select)
    want = masked(*exact, seen)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    (out * weight.to(DEVICE)).float().sum().backward()
    (want * weight).sum().backward()
    for mine, theirs in ((out, want), *zip((x.grad for x in tensors), (x.grad for x in exact), strict=True)):
        error = (mine.detach().cpu().double() - theirs.detach()).abs()
        assert error.max() < most * max(1, theirs.detach().abs().max())
        assert error.mean() < mean


def test_kernels_that_cannot_run_are_named():
    q, k, v = draw(5, 8, 2, 2, 16, torch.float64)
    with pytest.raises(InvalidConfig, match="at most float32"):
        moba_attention(q, k, v, kernels="triton")
    with pytest.raises(InvalidConfig, match="native needs a CPU"):
        moba_attention(*draw(5, 8, 2, 2, 20), kernels="native")
    with pytest.raises(InvalidConfig, match="auto, native, torch or triton"):
        moba_attention(q, k, v, kernels="cuda")


@needs_triton
@pytest.mark.parametrize(("streams", "count", "clusters", "width"), [(2, 70, 40, 32), (1, 5, 5, 20)])
def test_each_key_goes_to_the_first_nearest_centroid(streams, count, clusters, width):
    from statepool.engine.attention.wave.device.triton_cluster import assign, members, sums

    g = torch.Generator().manual_seed(0)
    # Small integers: products are exact, and many are equal.
    keys = torch.randint(-3, 4, (streams, count, width), generator=g).float()
    centroids = torch.randint(-1, 2, (streams, clusters, width), generator=g).float()
    best = assign(keys.to(DEVICE), centroids.to(DEVICE)).cpu()
    scores = keys.double() @ centroids.double().transpose(1, 2)
    first = (scores == scores.amax(2, keepdim=True)).int().argmax(2)
    assert torch.equal(best.long(), first)
    order, offsets = members(best.to(DEVICE), clusters)
    total = sums(keys.to(DEVICE), order, offsets).cpu()
    want = torch.zeros(streams, clusters, width).index_put_(
        (torch.arange(streams)[:, None].expand_as(first), first), keys, accumulate=True
    )
    assert torch.equal(total, want)


def split(tensors, sizes):
    return zip(*(x.split(list(sizes), dim=1) for x in tensors), strict=True)


def paged(dtype, group, width, config, count=150, streams=2, chunks=()):
    """Tokens in the sizes of ``chunks`` are appended, those before them built."""
    from statepool.engine.attention.wave.device.index import DeviceWaveIndex

    g = torch.Generator().manual_seed(3)
    centres = torch.randn(streams, 12, width, generator=g)
    keys = centres[:, torch.randint(0, 12, (count,), generator=g)] + 0.3 * torch.randn(
        streams, count, width, generator=g
    )
    values, query = torch.randn(keys.shape, generator=g), 2 * torch.randn(streams, group, width, generator=g)
    keys, values, query = keys.to(dtype), values.to(dtype), query.to(dtype).float()
    first, *more = ([x.to(DEVICE) for x in part] for part in split((keys, values), [count - sum(chunks), *chunks]))
    index = DeviceWaveIndex.build(*first, config)
    for part in more:
        index = index.append(*part)
    out, lse = index.decode(query.to(DEVICE))
    return keys.double(), values.double(), query.double(), index, out.cpu().double(), lse.cpu().double()


@needs_triton
@pytest.mark.parametrize(("dtype", "most", "mean"), TYPES)
@pytest.mark.parametrize(
    ("group", "width", "chunks"), [(2, 32, ()), (7, 20, ()), (2, 32, (1, 62, 3, 24)), (1, 16, (63,))]
)
def test_reading_every_cluster_is_attention(dtype, most, mean, group, width, chunks):
    config = WaveConfig(
        tokens_per_cluster=8, segment=64, update_segment=64, local=10, iterations=2, retrieve=1.0, estimate=0.0
    )
    keys, values, query, _, out, lse = paged(dtype, group, width, config, chunks=chunks)
    scores = query @ keys.transpose(1, 2) * width**-0.5
    want = scores.softmax(2) @ values
    assert (out - want).abs().max() < most
    assert (out - want).abs().mean() < mean
    assert (lse - scores.logsumexp(2)).abs().max() < most


@needs_triton
def test_the_same_index_whatever_the_chunks():
    config = WaveConfig(
        tokens_per_cluster=8, segment=64, update_segment=32, local=10, iterations=2, retrieve=0.2, least=0
    )
    at_once, one_by_one = (
        paged(torch.float32, 2, 16, config, chunks=chunks)[3:] for chunks in ((90,), (1, 31, *[1] * 40, 18))
    )
    assert at_once[0].newest == one_by_one[0].newest == 10 + 90 % 32
    assert torch.equal(at_once[1], one_by_one[1])
    assert torch.equal(at_once[2], one_by_one[2])


@needs_triton
def test_indices_join():
    from statepool.engine.attention.wave.device.index import DeviceWaveIndex

    config = WaveConfig(
        tokens_per_cluster=8, segment=64, update_segment=64, local=10, iterations=2, retrieve=0.2, least=0
    )
    keys, values, query, _, out, _ = paged(torch.float32, 2, 16, config)
    parts = [
        DeviceWaveIndex.build(keys[i : i + 1].float().to(DEVICE), values[i : i + 1].float().to(DEVICE), config)
        for i in range(2)
    ]
    joined, _ = DeviceWaveIndex.joined(parts).decode(query.float().to(DEVICE))
    torch.testing.assert_close(joined.cpu().double(), out, atol=1e-6, rtol=1e-6)


@needs_triton
@pytest.mark.parametrize(("estimator", "chunks"), [("mean", ()), ("iso2", ()), ("iso2", (5, 70))])
def test_the_three_zones(estimator, chunks):
    """What is read, estimated and left out, written down cluster by cluster in float64."""
    config = WaveConfig(
        tokens_per_cluster=8,
        segment=64,
        update_segment=64,
        local=10,
        iterations=2,
        retrieve=0.2,
        least=0,
        estimate=0.4,
        estimator=estimator,
    )
    keys, values, query, index, out, lse = paged(torch.float32, 2, 32, config, chunks=chunks)
    scale, sink, local = 32**-0.5, config.sink, index.newest
    for stream in range(len(keys)):
        k, v, q = keys[stream], values[stream], query[stream]
        sizes, centroids = index.sizes[stream].cpu(), index.centroids[stream].cpu().double()
        body, clusters = k[sink:-local], len(sizes)
        # Members by distance from the stored means: each key's row in its cluster's pages is found again there.
        rows = index.pages[:, 0].reshape(-1, 32).cpu().double()
        member = torch.zeros(clusters, len(body), dtype=torch.bool)
        for c in range(clusters):
            first = int(index.first_page[stream, c]) * 8
            for row in rows[first : first + int(sizes[c])]:
                member[c, (body - row).abs().sum(1).argmin()] = True
        assert (member.sum(0) == 1).all()
        assert torch.equal(member.sum(1), sizes)
        x = q @ centroids.T * scale
        log_n = sizes.double().log()
        if estimator == "iso2":
            variance = index.spread[stream].cpu().double() * (q * scale).square().sum(1, keepdim=True)
            size = log_n.clamp_min(0)
            x = x + torch.where(variance <= 2 * size, variance / 2, (2 * size * variance).sqrt() - size)
        order = (x + log_n).softmax(1).sum(0).argsort(descending=True)
        read, estimated = round(0.2 * clusters), round(0.4 * clusters)
        seen = torch.zeros(len(k), dtype=torch.bool)
        seen[:sink] = seen[-local:] = True
        seen[sink:-local] |= member[order[:read]].any(0)
        some = order[read : read + estimated]
        means = torch.stack([v[sink:-local][member[c]].mean(0) for c in some])
        scores = torch.cat([q @ k[seen].T * scale, (x + log_n)[:, some]], dim=1)
        want = scores.softmax(1) @ torch.cat([v[seen], means])
        torch.testing.assert_close(out[stream], want, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(lse[stream], scores.logsumexp(1), atol=2e-5, rtol=2e-5)


@needs_triton
def test_wrong_arguments_of_an_index():
    from statepool.engine.attention.wave.device.index import DeviceWaveIndex

    keys = torch.zeros(1, 60, 16)
    with pytest.raises(InvalidRequest, match="60 tokens are too few"):
        DeviceWaveIndex.build(keys, keys, WaveConfig())
    with pytest.raises(InvalidRequest, match="keys and values must both be"):
        DeviceWaveIndex.build(keys, keys[:, :4], WaveConfig())
    index = DeviceWaveIndex.build(*[torch.zeros(1, 120, 16, device=DEVICE)] * 2, WaveConfig())
    for wrong in (keys[..., :8], keys.bfloat16(), keys[0]):
        with pytest.raises(InvalidRequest, match=r"must be \[1, tokens, 16\] torch.float32"):
            index.append(wrong, wrong)
    with pytest.raises(InvalidConfig, match="diag2 is not built"):
        DeviceWaveIndex.build(keys, keys, WaveConfig(estimator="diag2"))
