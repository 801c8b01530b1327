"""The device path: Triton's kernels against float64, rows that never meet, and a runner that equals the native one.

Without a GPU the kernels run in Triton's interpreter on CPU tensors: that proves their logic, not their compilation.
On a machine with one, the same tests run compiled.
"""

import importlib.util
import os

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

from statepool.core.errors import InvalidConfig
from statepool.engine import cuda, engine
from statepool.engine.batch import Batch
from statepool.engine.gpu import GpuRunner
from statepool.engine.ops import device, linear, reference, sdpa
from statepool.engine.request import Request, SamplingParams
from statepool.native import kernels

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_native = pytest.mark.skipif(kernels is None, reason="needs the native module")
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
# An interpreted kernel is too slow to shrink a failure with.
unshrunk = (Phase.explicit, Phase.reuse, Phase.generate)
MODES = ["int8", "int4", "bf16", "fp32"]
EPS = 1e-6


def bits(*tensors):
    return [t.contiguous().view(torch.uint8).cpu().numpy().tobytes() for t in tensors]


def close(a, b, tolerance=1e-5 if CUDA else 2e-6):
    a, b = a.double().cpu(), torch.as_tensor(b).double().cpu()
    assert ((a - b).norm() <= tolerance * b.norm()).item(), (a - b).abs().max()


class Paged:
    """Requests with random keys and values in a pool whose unwritten slots are NaN, and the dense truth."""

    def __init__(self, seed, counts, contexts, width=16, kv_heads=1, group=2, bf16=True):
        normal = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=normal)  # noqa: E731
        self.kv_heads, self.group, self.width, self.contexts = kv_heads, group, width, contexts
        pages = [-(-context // 16) for context in contexts]
        total = sum(pages)
        shuffled = torch.randperm(total, generator=normal).tolist()
        pool = torch.full((total, 2, 2, kv_heads, 16 * width), float("nan"))
        self.dense = []
        table = torch.zeros(len(contexts), max(pages), dtype=torch.int32)
        for r, context in enumerate(contexts):
            k, v = (draw(context, kv_heads, width).bfloat16().float() for _ in "kv")
            self.dense.append((k, v))
            for t in range(context):
                table[r, t // 16] = block = shuffled[sum(pages[:r]) + t // 16]
                pool[block, 1, 0].view(kv_heads, width, 16)[:, :, t % 16] = k[t]
                pool[block, 1, 1].view(kv_heads, 16, width)[:, t % 16] = v[t]
        self.pool = (pool.bfloat16() if bf16 else pool).to(DEVICE)
        self.table, self.counts = table.to(DEVICE), counts
        self.q = draw(sum(counts), kv_heads * group, width).to(DEVICE)

    def run(self, attention, rows=None, lse=True):
        """Attention of all rows, or of the requests ``rows`` as (request, first row, last row) only."""
        starts = np.concatenate([[0], np.cumsum(self.counts)])
        rows = rows or [(r, 0, count) for r, count in enumerate(self.counts)]
        q = torch.cat([self.q[starts[r] + a : starts[r] + b] for r, a, b in rows])
        table = self.table[[r for r, _, _ in rows]]
        start = torch.tensor([0, *np.cumsum([b - a for _, a, b in rows])], dtype=torch.int32, device=DEVICE)
        context = [self.contexts[r] - self.counts[r] + b for r, _, b in rows]
        context = torch.tensor(context, dtype=torch.int32, device=DEVICE)
        out = torch.full((len(q), q.shape[1] * self.width), 7.0, device=DEVICE)
        sums = [torch.empty(len(q), q.shape[1], device=DEVICE)] if lse else []
        attention(q, self.pool, 1, table, start, context, self.width**-0.5, out, *sums)
        return (out, *sums) if lse else out

    def truth(self):
        """Plain softmax attention in float64, written from its definition."""
        out, sums, row = [], [], 0
        for (k, v), count, context in zip(self.dense, self.counts, self.contexts, strict=True):
            k, v = (x.double().repeat_interleave(self.group, 1) for x in (k, v))
            for position in range(context - count, context):
                s = torch.einsum("hd,thd->ht", self.q[row].double().cpu(), k[: position + 1]) * self.width**-0.5
                out.append(torch.einsum("ht,thd->hd", s.softmax(-1), v[: position + 1]).flatten())
                sums.append(s.logsumexp(-1))
                row += 1
        return torch.stack(out), torch.stack(sums)


paged = st.builds(
    lambda seed, parts, **shape: Paged(seed, [c for c, _ in parts], [c + old for c, old in parts], **shape),
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40)), min_size=1, max_size=3),
    width=st.sampled_from([16, 48]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    bf16=st.booleans(),
)


@needs_triton
@settings(max_examples=5, phases=unshrunk)
@given(paged)
def test_every_attention_equals_the_definition(case):
    from statepool.engine.ops.triton_attention import attention

    out, lse = case.truth()
    for kind in (reference.attention, attention):
        found = case.run(kind)
        close(found[0], out)
        close(found[1], lse)
    case.pool.nan_to_num_(0.0)  # torch's kernel multiplies masked values by zero
    close(case.run(sdpa.attention, lse=False), out, 2e-2)


@needs_triton
def test_attention_rows_never_meet(monkeypatch):
    from statepool.engine.ops import triton_attention

    monkeypatch.setattr(triton_attention, "SEGMENT_PAGES", 2)
    case = Paged(1, [4, 1, 2], [66, 40, 18], group=3)
    out, lse = case.run(triton_attention.attention)
    close(out, case.truth()[0])
    pieces = [(0, 0, 3), (0, 3, 4), (1, 0, 1), (2, 1, 2)]
    parts = [case.run(triton_attention.attention, [piece]) for piece in pieces]
    rows = [0, 1, 2, 3, 4, 6]
    assert bits(out[rows], lse[rows]) == bits(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
    monkeypatch.setattr(triton_attention, "PARTIAL_BYTES", 3 * 3 * 3 * 18 * 4)  # three rows at a time
    assert bits(*case.run(triton_attention.attention)) == bits(out, lse)


@needs_triton
@settings(max_examples=6, phases=unshrunk)
@given(st.integers(0, 2**32), st.sampled_from(MODES), st.integers(1, 40), st.sampled_from([64, 100]), st.booleans())
def test_linear_is_exact_or_near_and_rows_never_meet(seed, mode, rows, k, biased):
    from statepool.engine.ops.triton_linear import Linear, quantise_rows

    draw = torch.Generator().manual_seed(seed)
    w, x = (torch.randn(n, k, generator=draw).to(DEVICE) for n in (80, rows))
    bias = torch.randn(80, generator=draw).to(DEVICE) if biased else None
    ours, twin = Linear(w, mode, bias), linear.Linear(w, mode, bias)
    assert ours.nbytes <= twin.nbytes
    out, expected = torch.empty(rows, 80, device=DEVICE), torch.empty(rows, 80, device=DEVICE)
    ours.apply(x, out)
    twin.apply(x, expected)
    if mode in ("int8", "int4"):
        values, scales = linear.quantise_rows(x)
        ours_values, ours_scales = quantise_rows(x)
        assert bits(ours_scales) == bits(scales)
        # A compiler may fuse a product with the sum that follows; then a tie can fall the other way.
        assert (ours_values.int() - values.int()).abs().max() <= CUDA
        assert CUDA or mode == "int4" or bits(out) == bits(expected)
    close(out, expected, 1e-3 if CUDA else 2e-6)
    if mode in ("bf16", "fp32"):
        used = w.bfloat16() if mode == "bf16" else w
        exact = x.double() @ used.double().T
        close(out, exact if bias is None else exact + bias)
    # NumPy's product, which stands for the device's under the interpreter, depends on a row's place in the tile.
    at = rows - 1 if CUDA or ours.int8 else (rows - 1) // 32 * 32
    alone = torch.empty(1, 80, device=DEVICE)
    ours.apply(x[at : at + 1].clone(), alone)
    assert bits(alone) == bits(out[at : at + 1])
    added = torch.empty_like(out)
    ours.apply(x, added, residual=expected)
    close(added, expected + out)


@needs_triton
@settings(max_examples=4, phases=unshrunk)
@given(st.integers(0, 2**32), st.sampled_from([16, 48]), st.integers(1, 2), st.booleans(), st.booleans())
def test_rows_of_a_layer_equal_the_definition(seed, width, kv_heads, normed, bf16):
    from statepool.engine.ops import triton_layer as ops

    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw).to(DEVICE)  # noqa: E731
    x, w, gate_up = normal(3, 100), normal(100), 20 * normal(3, 160)
    wide = x.double()
    truth = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * w
    close(ops.norm_rows(x, w, EPS, False)[0], truth)
    gate, up = gate_up.double().chunk(2, -1)
    close(ops.silu_rows(gate_up, False)[0], gate / (1 + (-gate).exp()) * up)
    for (values, scales), exact in (
        (ops.norm_rows(x, w, EPS, True), truth),
        (ops.silu_rows(gate_up, True), gate / (1 + (-gate).exp()) * up),
    ):
        close(scales, exact.abs().amax(-1) / 127)
        assert ((values.double() - exact / scales[:, None]).abs() <= 0.501).all()

    heads = 2 * kv_heads
    qkv, norms = normal(3, (heads + 2 * kv_heads) * width), normal(2, width) if normed else None
    angle = torch.outer(torch.arange(9), 10.0 ** -torch.linspace(0, 3, width // 2)).to(DEVICE)
    positions = torch.tensor([8, 0, 5], dtype=torch.int32, device=DEVICE)
    slots = torch.tensor([33, 2, 17], device=DEVICE)
    pool = torch.zeros(3, 2, 2, kv_heads, 16 * width, dtype=torch.bfloat16 if bf16 else torch.float32, device=DEVICE)
    q = torch.empty(3, heads * width, device=DEVICE)
    ops.rotate_scatter(qkv, norms, EPS, angle.cos(), angle.sin(), positions, slots, pool, 1, q, heads)
    parts = list(qkv.double().view(3, -1, width).split([heads, kv_heads, kv_heads], 1))
    for i in range(2):
        if norms is not None:
            parts[i] = parts[i] / (parts[i].square().mean(-1, keepdim=True) + EPS).sqrt() * norms[i]
        parts[i] = reference.rotate(parts[i], *(t[positions.long()].double() for t in (angle.cos(), angle.sin())))
    expected = torch.zeros_like(pool)
    reference.scatter_kv(parts[1].float(), parts[2].float(), slots, expected, 1)
    close(q, parts[0].flatten(1))
    close(pool, expected, 4e-3 if bf16 else 1e-5)
    values = pool.view(3, 2, 2, kv_heads, 16, width)[slots // 16, 1, 1, :, slots % 16]
    assert torch.equal(values, parts[2].to(pool.dtype))  # only rounded
    assert not pool[:, 0].any()


def parts(length, cut=None):
    """A batch of one prompt of bytes, whole or as two chunks."""
    tokens = [(7 * i) % 250 for i in range(length)]
    if cut is None:
        return [Batch.build([(tokens, 0, [3, 1])])]
    return [Batch.build([(tokens[:cut], 0, [3, 1])]), Batch.build([([9, 8], 0, [2]), (tokens[cut:], cut, [3, 1])])]


@pytest.fixture
def on_device(monkeypatch):
    """Makes the engines that follow run on a device, with these ops."""

    def choose(**wanted):
        def runner(config, decoder, checkpoint, layout, blocks, max_len):
            args = (decoder, checkpoint, config.quant, layout, blocks, max_len)
            return GpuRunner(*args, device=DEVICE, wanted=wanted or dict.fromkeys(device.CHOICES, "reference")), "cuda"

        monkeypatch.setattr(engine, "_runner", runner)

    return choose


@needs_native
@pytest.mark.parametrize("quant", MODES)
def test_reference_ops_in_the_runner_equal_the_native_engine(quant, make_engine, on_device):
    def run(prompts, **settings):
        made = make_engine(quant=quant, blocks=8, **settings)
        params = SamplingParams(max_tokens=2, temperature=0.8, seed=4, logprobs=2, ignore_eos=True)
        outputs = made.generate([Request(str(i), prompt, params) for i, prompt in enumerate(prompts)])
        flat = [(o.tokens, [(p.logprob, p.top) for p in o.logprobs]) for os in outputs.values() for o in os]
        return flat, made.runner.read_blocks(list(range(8))), made

    prompts = [tuple(range(18)), (5, 6, 7)]
    flat, blocks, native = run(prompts)
    on_device()
    ours, ours_blocks, moved = run(prompts)
    assert ours == flat
    assert (blocks.dtype, blocks.tobytes()) == (ours_blocks.dtype, ours_blocks.tobytes())
    assert moved.runner.arithmetic == native.runner.arithmetic == "exact"
    moved.runner.write_blocks([5], blocks[[0]])
    moved.runner.copy_block(5, 6)
    assert moved.runner.read_blocks([6]).tobytes() == blocks[0].tobytes()
    tokens = [3, 4]
    native.runner.load({"model.layers.0.mlp.up_proj.weight", "model.norm.weight"})
    assert moved.embed(tokens).tobytes() == native.embed(tokens).tobytes()


@needs_native
@needs_triton
@pytest.mark.parametrize("quant", MODES if CUDA else ["int8", "bf16"])
def test_triton_ops_in_the_runner(quant, make_engine, make_checkpoint, on_device):
    model = make_checkpoint(num_hidden_layers=1)
    native = make_engine(model, quant=quant, blocks=2).runner
    expected = native.logits(native.forward(parts(18)[0])[-1:])
    on_device(layer="triton", attention="triton")

    def last(batches):
        made = make_engine(model, quant=quant, blocks=2)
        for batch in batches:
            hidden = made.runner.forward(batch)
        assert "triton" in made.runner.arithmetic
        blocks = made.runner.read_blocks([3, 1])
        return made.runner.logits(hidden[[-1]]), blocks

    logits, blocks = last(parts(18))
    # One int8 or bf16 value that rounds the other way moves a logit by far more than the sums do.
    close(torch.as_tensor(logits), expected, {"fp32": 1e-4, "bf16": 5e-3}.get(quant, 3e-2))
    chunked, chunked_blocks = last(parts(18, cut=5))
    if CUDA or quant == "int8":  # see the linear operators above
        assert (logits.tobytes(), blocks.tobytes()) == (chunked.tobytes(), chunked_blocks.tobytes())
    else:
        close(torch.as_tensor(chunked), logits, 5e-3)


def test_choices_are_named_and_checked(monkeypatch):
    cpu = torch.device("cpu")
    assert device.choose(cpu) == {"layer": "reference", "attention": "reference"}
    monkeypatch.setenv(device.VARIABLE, "attention=sdpa")
    assert device.choose(cpu)["attention"] == "sdpa"
    assert device.DeviceOps(cpu).arithmetic != "exact"
    with pytest.raises(InvalidConfig, match="layer=sdpa"):
        device.choose(cpu, {"layer": "sdpa"})


@pytest.mark.skipif(CUDA, reason="needs a machine without CUDA")
def test_no_device_is_said(make_engine):
    assert cuda.missing() is not None
    with pytest.raises(InvalidConfig, match="backend 'cuda' is not available"):
        make_engine(backend="cuda")


@needs_cuda
@needs_triton
@pytest.mark.parametrize("quant", MODES)
def test_same_bits_alone_and_in_a_batch_on_cuda(quant, make_engine):
    def run(requests, **settings):
        made = make_engine(quant=quant, backend="cuda", **settings)
        outputs = made.generate(requests)["r0"]
        return [(o.tokens, [p.logprob for p in o.logprobs]) for o in outputs]

    params = SamplingParams(max_tokens=20, temperature=0.0, logprobs=0, ignore_eos=True)
    requests = [Request(f"r{i}", tuple(range(i, 40 + 3 * i)), params) for i in range(5)]
    alone = run(requests[:1])
    assert run(requests) == alone
    assert run(requests, max_batched_tokens=7, max_seqs=3) == alone
