"""D1 and D2: the same request, the same bits, whatever happens around it.

Each case draws a request and a disturbance: neighbours in the batch, chunk sizes, a warm prefix cache, a pool so
small that requests are preempted, speculation, a move to another engine, a restart. Tokens and
log-probabilities must equal those of the request alone in a fresh engine, bit for bit.
"""

import random
import struct

import numpy as np
import pytest

from statepool.core.errors import InvalidRequest
from statepool.engine.request import Request, SamplingParams

CASES = 200
DISTURBANCES = ["batch", "chunks", "prefix", "preempt", "speculate", "migrate", "session", "siblings"]


def draw_request(rng, name="target"):
    repeated = [rng.randrange(256) for _ in range(rng.randint(1, 20))]
    prompt = tuple((repeated * 20)[: rng.randint(1, 90)])
    return Request(
        name,
        prompt,
        SamplingParams(
            max_tokens=rng.randint(1, 40),
            temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 5]),
            min_p=rng.choice([0.0, 0.05]),
            seed=rng.getrandbits(64),
            presence_penalty=rng.choice([0.0, 0.5]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            logprobs=rng.choice([0, 3]),
            prompt_logprobs=rng.choice([None, None, 0]),
            ignore_eos=rng.random() < 0.5,
        ),
        index=rng.randrange(4),
    )


def bits(outputs):
    """Everything of a result that must not change, floats as bytes."""
    tokens = [t for o in outputs for t in o.tokens]
    logprobs = [(p.token, p.logprob, p.top) for o in outputs for p in o.logprobs]
    sampled = [p for o in outputs for p in o.sampled_logprobs]
    prompt = [p and (p.token, p.logprob) for o in outputs for p in o.prompt_logprobs or ()]
    floats = [v for _, lp, top in logprobs for v in (lp, *(q for _, q in top))] + sampled + [p[1] for p in prompt if p]
    text = "".join(o.text for o in outputs)
    return tokens, struct.pack(f"{len(floats)}d", *floats), text, outputs[-1].finish_reason


def drain(engine, collected):
    while engine.has_work:
        for output in engine.step():
            collected.setdefault(output.id, []).append(output)
    return collected


def disturbed(kind, request, rng, make_engine, quant):
    """Run ``request`` under a disturbance; returns its outputs."""
    others = [draw_request(rng, f"other{i}") for i in range(rng.randint(1, 5))]
    if kind == "batch":
        engine = make_engine(quant=quant)
        everyone = [*others, request]
        rng.shuffle(everyone)
        return engine.generate(everyone)["target"]
    if kind == "chunks":
        engine = make_engine(quant=quant, max_batched_tokens=rng.randint(3, 20), max_seqs=3)
        return engine.generate([*others, request])["target"]
    if kind == "prefix":
        engine = make_engine(quant=quant)
        longer = Request(
            "warm", request.prompt + tuple(rng.randrange(256) for _ in range(30)), SamplingParams(max_tokens=1)
        )
        engine.generate([longer, *others])
        result = engine.generate([request])["target"]
        if len(request.prompt) > 16 and request.params.prompt_logprobs is None:
            assert result[-1].usage.cached_tokens >= 16
        return result
    if kind == "preempt":
        engine = make_engine(quant=quant, blocks=10, max_seqs=6)
        result = engine.generate([*others, request])["target"]
        assert engine.pool.free == engine.pool.total
        return result
    if kind == "speculate":
        engine = make_engine(quant=quant, speculate="ngram", max_draft=rng.randint(1, 8))
        return engine.generate([*others, request])["target"]
    if kind == "migrate":
        collected = {}
        engine = make_engine(quant=quant)
        for one in [request, *others]:
            engine.submit(one)
        for _ in range(rng.randint(0, 12)):
            for output in engine.step():
                collected.setdefault(output.id, []).append(output)
        if not any(o.finish_reason for o in collected.get("target", [])):
            state = engine.export_state("target")
            engine = make_engine(quant=quant, blocks=rng.choice([8, 64]))
            assert engine.import_state(state) == "target"
        return drain(engine, collected)["target"]
    if kind == "session":
        engine = make_engine(quant=quant)
        cut = rng.randint(1, len(request.prompt))
        engine.generate([Request("first", request.prompt[:cut], SamplingParams(max_tokens=3), session="s")])
        if rng.random() < 0.5:
            engine.sessions.park("", "s")
        again = Request(**{f: getattr(request, f) for f in request.__slots__} | {"session": "s"})
        return engine.generate([*others, again])["target"]
    engine = make_engine(quant=quant)
    twins = [Request(f"twin{i}", request.prompt, SamplingParams(max_tokens=5, seed=i), index=i) for i in range(4)]
    return engine.generate([*twins, request])["target"]


@pytest.mark.parametrize("case", range(CASES))
def test_same_bits_whatever_happens(case, make_engine):
    kind = DISTURBANCES[case % len(DISTURBANCES)]
    rng = random.Random(case)
    quant = rng.choice(["int8", "int8", "int4", "bf16", "fp32"])
    request = draw_request(rng)
    alone = make_engine(quant=quant).generate([request])["target"]
    assert bits(disturbed(kind, request, rng, make_engine, quant)) == bits(alone)


@pytest.mark.parametrize("quant", ["int8", "int4", "bf16", "fp32"])
def test_score_equals_generation(quant, make_engine):
    engine = make_engine(quant=quant, max_batched_tokens=16, max_seqs=4)
    prompt = tuple(range(40, 77))
    params = SamplingParams(max_tokens=50, seed=5, logprobs=0, ignore_eos=True)
    outputs = engine.generate([Request("a", prompt, params)])["a"]
    tokens = [t for o in outputs for t in o.tokens]
    generated = np.array([p.logprob for o in outputs for p in o.logprobs], np.float32)
    scored = make_engine(quant=quant).score([*prompt, *tokens])
    assert scored[len(prompt) - 1 :].tobytes() == generated.tobytes()
    assert engine.score([*prompt, *tokens]).tobytes() == scored.tobytes()


def test_embedding_does_not_depend_on_chunks(make_engine):
    tokens = list(range(100))
    whole = make_engine().embed(tokens)
    assert make_engine(max_batched_tokens=7, max_seqs=2).embed(tokens).tobytes() == whole.tobytes()
    assert np.linalg.norm(whole) == pytest.approx(1.0, abs=1e-6)


def test_an_embedding_runs_beside_a_stream_and_moves(make_engine):
    tokens = tuple(range(100))
    whole = make_engine().embed(tokens).tolist()
    engine = make_engine(max_batched_tokens=16, max_seqs=2)
    engine.submit(Request("stream", (1, 2, 3), SamplingParams(max_tokens=60, seed=1, ignore_eos=True)))
    engine.submit(Request("vector", tokens, SamplingParams(max_tokens=0), embed=True))
    for _ in range(4):
        assert any(output.id == "stream" for output in engine.step())
    moved = make_engine()
    moved.import_state(engine.export_state("vector"))
    (output,) = moved.step()
    assert output.embedding == tuple(whole)
    assert output.usage.completion_tokens == 0


def test_an_embedding_chooses_no_tokens():
    with pytest.raises(InvalidRequest, match="max_tokens 0"):
        Request("a", (1,), SamplingParams(max_tokens=1), embed=True)


@pytest.mark.parametrize("quant", ["int8", "int4", "bf16", "fp32"])
def test_the_torch_twin_gives_the_same_bits(quant, make_engine):
    params = SamplingParams(max_tokens=6, seed=3, logprobs=2, prompt_logprobs=0, ignore_eos=True)
    request = Request("target", tuple(range(60, 80)), params)
    native, twin = (
        make_engine(quant=quant, backend=name).generate([request])["target"] for name in ("native", "torch")
    )
    assert bits(twin) == bits(native)
