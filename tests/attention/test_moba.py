"""Block attention: the torch function against a mask in float64, the engine's against both, bit-equal in any batch."""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.engine.conftest import checkpoint, make_engine  # noqa: F401
from tests.engine.test_determinism import DISTURBANCES, bits, disturbed, draw_request

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.attention.moba import MobaAttention, MobaConfig
from statepool.engine.batch import Batch, Context
from statepool.engine.request import Request, SamplingParams
from statepool.kv.tiers import Resident
from statepool.native import kernels
from statepool.train.moba import chosen_blocks, moba_attention

MOBA = "moba:block=16,topk=2"


def visible(q, k, borders, block, topk, select):
    """bool [heads][T][T]: which keys each query reads, written down pair by pair."""
    count, heads, _ = q.shape
    group, seen = heads // k.shape[1], torch.zeros(heads, count, count, dtype=torch.bool)
    for begin, end in pairwise(borders):
        for t in range(begin, end):
            own = (t - begin) // block
            likes = []
            for head in range(heads):
                kv = head // group
                means = [k[begin + b * block : begin + (b + 1) * block, kv].double().mean(0) for b in range(own)]
                likes.append([float(q[t, head].double() @ mean) for mean in means])
            for head in range(heads):
                mates = range(head // group * group, (head // group + 1) * group)
                score = likes[head] if select == "head" else [sum(likes[m][b] for m in mates) for b in range(own)]
                best = sorted(range(own), key=lambda b: (-score[b], b))[: topk - 1]
                for b in best:
                    seen[head, t, begin + b * block : begin + (b + 1) * block] = True
                seen[head, t, begin + own * block : t + 1] = True
    return seen


def masked(q, k, v, seen):
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("thd,shd->hts", q.double(), k.double().repeat_interleave(group, 1)) * q.shape[2] ** -0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v.double().repeat_interleave(group, 1))


def draw(seed, count, heads, kv_heads, width, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    shapes = ((count, heads, width), (count, kv_heads, width), (count, kv_heads, width))
    return tuple(torch.randn(shape, generator=g).to(dtype) for shape in shapes)


needs_native = pytest.mark.skipif(kernels is None, reason="needs the native module")


@pytest.mark.parametrize("how", ["torch", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("select", ["head", "group"])
@pytest.mark.parametrize(
    ("borders", "heads", "kv_heads", "width", "block", "topk"),
    [
        ((0, 70), 2, 1, 16, 16, 2),
        ((0, 33, 33, 61, 90), 4, 2, 16, 8, 3),
        ((0, 50), 7, 1, 16, 7, 4),
        ((0, 40), 8, 8, 16, 16, 1),
        ((0, 5, 48), 3, 3, 48, 16, 9),
        ((0, 230), 8, 2, 80, 40, 2),
    ],
)
def test_values_and_gradients_are_those_of_the_mask(
    borders, heads, kv_heads, width, block, topk, select, how, record_property
):
    tensors = [x.requires_grad_() for x in draw(1, borders[-1], heads, kv_heads, width)]
    out = moba_attention(*tensors, torch.tensor(borders), block, topk, select, how)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    want = masked(*exact, visible(tensors[0].detach(), tensors[1].detach(), borders, block, topk, select))
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(2))
    (out * weight).sum().backward()
    (want * weight).sum().backward()
    distances = [(out.detach().double() - want.detach()).abs().max()]
    for mine, theirs in zip(tensors, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-5, rtol=1e-5)
        distances.append((mine.grad.double() - theirs.grad).abs().max())
    record_property("distance", max(map(float, distances)))


def test_a_zero_query_likes_all_blocks_alike_and_takes_the_first():
    q, k, v = draw(8, 64, 2, 1, 16)
    q = torch.zeros_like(q)
    out = moba_attention(q, k, v, block=16, topk=2)
    seen = torch.cat([v[:16], v[48:64]]).mean(0)  # the last query: the first block and its own
    torch.testing.assert_close(out[-1], seen.expand(2, -1), atol=1e-6, rtol=1e-6)


def test_bf16_within_the_published_tolerances():
    q, k, v = draw(3, 512, 4, 2, 64, torch.bfloat16)
    out = moba_attention(q, k, v, block=128, topk=2).double()
    error = (out - masked(q, k, v, visible(q, k, (0, 512), 128, 2, "head"))).abs()
    assert error.max() < 4e-2
    assert error.mean() < 4e-4


@pytest.mark.parametrize("count", [1, 15, 47, 48])
def test_a_context_of_topk_blocks_is_read_whole(count):
    q, k, v = draw(4, count, 2, 2, 16)
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1).double() for x in (q, k, v)), is_causal=True
    )
    torch.testing.assert_close(
        moba_attention(q, k, v, block=16, topk=3).double(), dense.transpose(0, 1), atol=1e-5, rtol=1e-5
    )


def test_wrong_arguments():
    q, k, v = draw(5, 8, 3, 2, 16)
    with pytest.raises(InvalidRequest, match="3 heads cannot share 2"):
        moba_attention(q, k, v)
    q, k, v = draw(5, 8, 2, 2, 16)
    with pytest.raises(InvalidRequest, match="rise from 0 to 8"):
        moba_attention(q, k, v, torch.tensor([0, 9]))
    with pytest.raises(InvalidRequest, match="head or group"):
        moba_attention(q, k, v, select="all")
    with pytest.raises(InvalidConfig, match="block must be at least 1"):
        moba_attention(q, k, v, block=0)
    with pytest.raises(InvalidConfig, match="topk must be at least 1"):
        MobaConfig(topk=0)
    with pytest.raises(InvalidRequest, match="q must be"):
        moba_attention(q, k, v[:4])


@needs_native
def test_bits_depend_on_the_document_alone():
    """The forward pass and the gradients of a document: alone on one thread, packed between others on four."""
    tensors, found, threads = draw(11, 700, 4, 2, 32), [], kernels.threads()
    for first, stop, borders, count in ((90, 610, [0, 520], 1), (0, 700, [0, 90, 610, 700], 4)):
        kernels.set_threads(count)
        leaves = [x[first:stop].clone().requires_grad_() for x in tensors]
        out = moba_attention(*leaves, torch.tensor(borders), 64, 3)
        (out * out.detach().cos()).sum().backward()
        rows = slice(90 - first, 610 - first)
        found.append([x[rows].detach().numpy().tobytes() for x in (out, *(leaf.grad for leaf in leaves))])
    kernels.set_threads(threads)
    assert found[0] == found[1]


@needs_native
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_instruction_sets_agree_on_values_and_gradients(isa):
    best, found = kernels.isa(), []
    for each in (best, isa):
        try:
            kernels.set_isa(each)
        except ValueError:
            pytest.skip(f"this machine lacks {isa}")
        try:
            leaves = [x.requires_grad_() for x in draw(13, 150, 4, 2, 80)]
            out = moba_attention(*leaves, block=24, topk=3)
            (out * out.detach().cos()).sum().backward()
        finally:
            kernels.set_isa(best)
        found.append([x.detach().numpy().tobytes() for x in (out, *(leaf.grad for leaf in leaves))])
    assert found[0] == found[1]


@needs_native
def test_a_long_list_of_blocks_is_ranked_as_in_torch():
    """50 blocks, equal means among them, and keys that are no numbers: the first of equals, and those last."""
    q, k, v = draw(12, 50 * 8, 2, 1, 16)
    k[8 * 30 : 8 * 38] = k[8 * 3 : 8 * 4].repeat(8, 1, 1)
    k[8 * 10 : 8 * 12] = torch.nan
    chosen = np.empty((2, 5, len(q)), np.int32)
    kernels.choose_blocks(q.numpy(), k.numpy(), 8, False, chosen)
    np.testing.assert_array_equal(chosen, chosen_blocks(q, k, MobaConfig(8, 5), "head").numpy())
    with pytest.raises(ValueError, match="behind its own"):
        kernels.block_attention(
            *(x.numpy() for x in (q, k, v)),
            8,
            chosen + 1,
            1.0,
            np.empty_like(q.numpy()),
            np.empty((2, 400), np.float32),
        )


@needs_native
@pytest.mark.parametrize("bf16", [False, True])
def test_the_engine_s_kernel_agrees_with_torch_row_by_row_and_whole(bf16, record_property):
    count, heads, kv_heads, width, config = 150, 6, 2, 32, MobaConfig(16, 3)
    q, k, v = draw(6, count, heads, kv_heads, width)
    if bf16:
        k, v = k.bfloat16(), v.bfloat16()
    blocks = -(-count // 16)
    pages = torch.randperm(blocks + 2, generator=torch.Generator().manual_seed(0))[:blocks].numpy().astype(np.int32)
    pool = np.zeros((blocks + 2, 2, 2, kv_heads, 16 * width), np.uint16 if bf16 else np.float32)
    for part, tensor in enumerate((k, v)):
        padded = torch.zeros(blocks * 16, kv_heads, width, dtype=tensor.dtype)
        padded[:count] = tensor
        paged = (
            padded.view(blocks, 16, kv_heads, width).permute(0, 2, 3, 1)
            if part == 0
            else padded.view(blocks, 16, kv_heads, width).permute(0, 2, 1, 3)
        )
        raw = paged.reshape(blocks, kv_heads, -1).contiguous()
        pool[pages, 1, part] = (raw.view(torch.uint16) if bf16 else raw).numpy()
    backend = MobaAttention(Resident(pool), width, config)

    def run(first, stop, context):
        ids = list(range(first, stop))
        batch = Batch.build([(ids, first, pages.tolist())], [context])
        out = np.empty((stop - first, heads * width), np.float32)
        backend.attend(1, q[first:stop].reshape(stop - first, -1).numpy().copy(), batch, out)
        return out

    whole = run(0, count, Context(0))
    want = moba_attention(q, k.float(), v.float(), block=16, topk=3)
    np.testing.assert_allclose(whole, want.reshape(count, -1).numpy(), atol=2e-5)
    context, at = Context(0), 0
    pieces = []
    for step in [7, 1, 1, 40, 16, 1, *[1] * 84]:
        pieces.append(run(at, at + step, context))
        at += step
    assert at == count
    together = np.concatenate(pieces)
    record_property("different", int((together.view(np.int32) != whole.view(np.int32)).any(axis=1).sum()))
    assert together.tobytes() == whole.tobytes()


@needs_native
@pytest.mark.parametrize("blocks", [4, 40, 160])
def test_a_decoded_token_reads_few_rows(blocks, record_property):
    """Two rows for each token of ``topk`` blocks, and one mean for each block: not the context."""
    width, block, topk, heads = 16, 32, 3, 2
    count = blocks * block
    pool = np.ones((count // 16, 1, 2, 1, 16 * width), np.float32)
    backend, context = MobaAttention(Resident(pool), width, MobaConfig(block, topk)), Context(0)

    def run(first, stop):
        batch = Batch.build([(list(range(stop - first)), first, list(range(count // 16)))], [context])
        query = np.ones((stop - first, heads * width), np.float32)
        backend.attend(0, query, batch, np.empty_like(query))
        return backend.rows_read

    before = run(0, count - 1)
    read = (run(count - 1, count) - before) / heads
    share = read / (2 * topk * block + blocks)
    record_property("share", share)
    assert read == 2 * topk * block + blocks - 1
    assert share <= 1


@needs_native
def test_blocks_with_nan_keys_are_liked_least():
    """40 blocks of 16: enough for the choice to be a partition of a long list."""
    width, blocks = 16, 40
    q, k, v = (x.numpy() for x in draw(7, blocks * 16, 1, 1, width))
    k[5 * 16 : 20 * 16] = np.nan
    pool = np.empty((blocks, 1, 2, 1, 16 * width), np.float32)
    pool[:, 0, 0] = k.reshape(blocks, 16, width).transpose(0, 2, 1).reshape(blocks, 1, -1)
    pool[:, 0, 1] = v.reshape(blocks, 1, -1)
    out = np.empty((len(q), width), np.float32)
    batch = Batch.build([(list(range(len(q))), 0, list(range(blocks)))], [Context(0)])
    MobaAttention(Resident(pool), width, MobaConfig(16, 3)).attend(0, q.reshape(len(q), width).copy(), batch, out)
    clean = torch.from_numpy(np.concatenate([k[: 5 * 16], k[20 * 16 :]]))
    rows = [np.concatenate([x[: 5 * 16], x[20 * 16 :]]) for x in (q, v, out[:, None])]
    want = moba_attention(torch.from_numpy(rows[0]), clean, torch.from_numpy(rows[1]), block=16, topk=3)
    np.testing.assert_allclose(rows[2][:, 0], want.numpy()[:, 0], atol=2e-5)


@needs_native
@pytest.mark.parametrize("case", range(48))
def test_same_bits_whatever_happens(case, make_engine):  # noqa: F811
    kind, rng = DISTURBANCES[case % len(DISTURBANCES)], random.Random(2000 + case)
    quant = rng.choice(["int8", "int8", "bf16", "fp32"])
    engine = partial(make_engine, attention=MOBA + rng.choice(["", ",last=1"]))
    request = draw_request(rng)
    alone = engine(quant=quant).generate([request])["target"]
    assert bits(disturbed(kind, request, rng, engine, quant)) == bits(alone)


@needs_native
def test_score_equals_generation_and_differs_from_full(make_engine):  # noqa: F811
    prompt, params = tuple(range(40, 140)), SamplingParams(max_tokens=40, seed=1, logprobs=0, ignore_eos=True)
    outputs = make_engine(attention=MOBA).generate([Request("a", prompt, params)])["a"]
    tokens = [t for o in outputs for t in o.tokens]
    generated = np.array([p.logprob for o in outputs for p in o.logprobs], np.float32)
    scored = make_engine(attention=MOBA, max_batched_tokens=16, max_seqs=2).score([*prompt, *tokens])
    assert scored[99:].tobytes() == generated.tobytes()
    assert make_engine().score([*prompt, *tokens])[99:].tobytes() != generated.tobytes()
    wide = make_engine(attention="moba:block=64,topk=9", quant="fp32").score(prompt)
    np.testing.assert_allclose(wide, make_engine(quant="fp32").score(prompt), atol=1e-5)


@needs_native
def test_blocks_are_whole_pages(make_engine):  # noqa: F811
    with pytest.raises(InvalidConfig, match="multiple of 16"):
        make_engine(attention="moba:block=24")
    with pytest.raises(InvalidConfig, match="no setting 'retrieve'"):
        make_engine(attention="moba:retrieve=1")
