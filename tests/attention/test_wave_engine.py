"""``--attention wave`` inside the engine: equal bits whatever happens, exact where all is read, segments shared."""

from __future__ import annotations

import json
import random
from functools import partial

import numpy as np
import pytest
from tests.engine.conftest import checkpoint, make_engine  # noqa: F401
from tests.engine.test_determinism import DISTURBANCES, bits, disturbed, draw_request

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.attention.spec import AttentionSpec
from statepool.engine.request import Request, SamplingParams

WAVE = (
    "wave:shortest=0,update_segment=32,segment=64,tokens_per_cluster=4,local=8,"
    "retrieve=0.2,least=0,estimate=0.3,iterations=3"
)
KINDS = [kind for kind in DISTURBANCES if kind != "session"]
PROMPT = tuple(range(40, 190))


def greedy(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0.0, logprobs=0, ignore_eos=True)


def logprobs(outputs):
    return np.array([p.logprob for o in outputs for p in o.logprobs], np.float32)


@pytest.mark.parametrize("case", range(70))
def test_same_bits_whatever_happens(case, make_engine):  # noqa: F811
    kind, rng = KINDS[case % len(KINDS)], random.Random(1000 + case)
    quant = rng.choice(["int8", "int8", "bf16", "fp32"])
    engine = partial(make_engine, attention=WAVE + rng.choice(["", ",first=1", ",estimator=diag2"]))
    request = draw_request(rng)
    alone = engine(quant=quant).generate([request])["target"]
    assert bits(disturbed(kind, request, rng, engine, quant)) == bits(alone)


def test_score_equals_generation(make_engine):  # noqa: F811
    engine = make_engine(attention=WAVE, max_batched_tokens=16, max_seqs=4)
    outputs = engine.generate([Request("a", PROMPT, greedy(60))])["a"]
    tokens = [t for o in outputs for t in o.tokens]
    scored = make_engine(attention=WAVE).score([*PROMPT, *tokens], exact=len(PROMPT))
    assert scored[len(PROMPT) - 1 :].tobytes() == logprobs(outputs).tobytes()
    exactly = make_engine(attention=WAVE).score([*PROMPT, *tokens])
    assert exactly.tobytes() == make_engine().score([*PROMPT, *tokens]).tobytes()
    assert exactly[len(PROMPT) :].tobytes() != scored[len(PROMPT) :].tobytes()


def test_reading_every_cluster_gives_full_attention(make_engine):  # noqa: F811
    request = Request("a", PROMPT, greedy(40))
    full = make_engine(quant="fp32").generate([request])["a"]
    wave = make_engine(quant="fp32", attention=WAVE + ",retrieve=1,estimate=0").generate([request])["a"]
    assert [o.tokens for o in wave] == [o.tokens for o in full]
    np.testing.assert_allclose(logprobs(wave), logprobs(full), atol=1e-5)


def test_exact_beyond_the_end_is_full_attention(make_engine):  # noqa: F811
    request = Request("a", PROMPT, greedy(40), exact=1 << 30)
    full = make_engine().generate([Request("a", PROMPT, greedy(40))])["a"]
    assert bits(make_engine(attention=WAVE).generate([request])["a"]) == bits(full)


def test_equal_prompts_share_segments_and_a_small_cache_changes_nothing(make_engine):  # noqa: F811
    requests = [Request(f"r{i}", PROMPT, SamplingParams(max_tokens=4, seed=i), index=i) for i in range(4)]
    engine = make_engine(attention=WAVE)
    first = {name: bits(o) for name, o in engine.generate(requests).items()}
    cache = engine.runner.backends[0].segments
    # Two layers; 142 of 150 tokens are due: 64 + 64 by everybody.
    assert (cache.builds, cache.hits) == (4, 12)
    starved = make_engine(attention=WAVE, wave_bytes=1)
    assert {name: bits(o) for name, o in starved.generate(requests).items()} == first
    assert starved.runner.backends[0].segments.bytes == 0


def test_answers_do_not_serve_as_prefixes(make_engine):  # noqa: F811
    """A prompt that holds an earlier answer is computed exactly, so that answer's blocks cannot be taken."""
    engine = make_engine(attention=WAVE)
    answer = tuple(t for o in engine.generate([Request("a", PROMPT, greedy(60))])["a"] for t in o.tokens)
    request = Request("b", PROMPT + answer, greedy(8))
    outputs = engine.generate([request])["b"]
    assert outputs[-1].usage.cached_tokens == len(PROMPT) // 16 * 16
    assert bits(outputs) == bits(make_engine(attention=WAVE).generate([request])["b"])


def test_sessions_are_refused(make_engine):  # noqa: F811
    with pytest.raises(InvalidRequest, match="sessions need answers computed like prompts"):
        make_engine(attention=WAVE).submit(Request("a", PROMPT, session="s"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparse", "full, wave or moba"),
        ("full:retrieve=1", "full, wave or moba"),
        ("wave:budget=1", "no setting 'budget'"),
        ("wave:retrieve=much", "retrieve must be a number"),
        ("wave:sink=-2", "sink must be a count"),
        ("wave:retrieve=2", "between 0 and 1"),
        ("wave:eps=-1", "eps must be a number from 0 on"),
        ("wave:eps=nan", "eps must be a number from 0 on"),
    ],
)
def test_a_wrong_text_is_one_clear_error(text, message):
    with pytest.raises(InvalidConfig, match=message):
        AttentionSpec.parse(text)


def test_what_this_engine_cannot_do(make_engine):  # noqa: F811
    with pytest.raises(InvalidConfig, match="more layers than the model's 2"):
        make_engine(attention="wave:first=2,last=1")
    with pytest.raises(InvalidConfig, match="native backend"):
        make_engine(attention="wave", backend="torch")
    with pytest.raises(InvalidConfig, match="multiple of 16"):
        make_engine(attention="wave:update_segment=40,segment=40")


def test_settings_are_part_of_what_results_depend_on():
    texts = ["full", "wave", "wave:paper", "wave:retrieve=0.1", "wave:first=1", "wave:last=1"]
    assert len({AttentionSpec.parse(text).identity for text in texts}) == len(texts)
    assert AttentionSpec.parse("full").identity == ""


@pytest.mark.parametrize("eps", [0.02, 0.3, 50.0])
def test_a_proof_asked_for_holds_in_every_layer(make_engine, monkeypatch, eps):  # noqa: F811
    """Every sparse row's output beside exact attention of the same query over the same keys."""
    engine = make_engine(quant="fp32", attention=WAVE + f",eps={eps}")
    backend, errors = engine.runner.backends[0], []
    attend = type(backend).attend

    def checked(self, layer, query, batch, out):
        attend(self, layer, query, batch, out)
        exact = np.empty_like(out)
        self._exact.attend(layer, query, batch, exact)
        difference = (exact - out).astype(np.float64).reshape(len(out), -1, 32)
        errors.extend(np.linalg.norm(difference, axis=2).max(axis=1).tolist())

    monkeypatch.setattr(type(backend), "attend", checked)
    engine.generate([Request("a", PROMPT, greedy(30))])
    assert max(errors) <= eps and (max(errors) > 1e-5) == (eps == 50.0)


def test_a_proof_changes_with_no_neighbour(make_engine):  # noqa: F811
    engine = partial(make_engine, attention=WAVE + ",eps=1.5")
    requests = [Request(f"r{i}", PROMPT[i:], greedy(12)) for i in range(3)]
    together = engine().generate(requests)
    assert all(bits(together[r.id]) == bits(engine().generate([r])[r.id]) for r in requests)


@pytest.mark.parametrize("more", ["", ",eps=1.5"])
def test_the_trace_says_what_was_read(make_engine, tmp_path, more):  # noqa: F811
    path = tmp_path / "selection.jsonl"
    engine = make_engine(attention=WAVE + more, trace_selection=str(path))
    outputs = engine.generate([Request("a", PROMPT, greedy(20))])["a"]
    assert bits(outputs) == bits(make_engine(attention=WAVE + more).generate([Request("a", PROMPT, greedy(20))])["a"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # The first token comes from the prompt's last one, and the last is never read; two layers.
    assert [(x["request"], x["layer"], x["position"]) for x in lines] == [
        ("a", layer, position) for position in range(150, 169) for layer in (0, 1)
    ]
    for line in lines:
        assert line["tokens"] == (line["position"] + 1 - 8) // 32 * 32
        clusters = line["tokens"] // 4
        assert clusters <= line["clusters"] < clusters + 16
        for read, estimated in zip(line["read"], line["estimated"], strict=True):
            assert len(set(read)) == len(read) and max(read) < line["clusters"]
            if not more:
                assert len(read) == round(0.2 * clusters) and estimated == round(0.3 * clusters)


def test_a_trace_that_cannot_be_written(make_engine):  # noqa: F811
    with pytest.raises(InvalidConfig, match="trace_selection: /nowhere/x cannot be written: No such file"):
        make_engine(attention="wave", trace_selection="/nowhere/x")
    with pytest.raises(InvalidConfig, match="needs wave attention"):
        make_engine(trace_selection="/nowhere/x")
