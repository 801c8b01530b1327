"""The wave index drafts, exact attention verifies: the bits of an engine that does not draft, in fewer steps."""

from __future__ import annotations

import random
from functools import partial

import pytest
from tests.e2e.conftest import run_server
from tests.engine.conftest import checkpoint, make_engine  # noqa: F401
from tests.engine.test_determinism import DISTURBANCES, bits, disturbed, draw_request

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams

DRAFT = (
    "wave:shortest=0,update_segment=32,segment=64,tokens_per_cluster=4,local=8,"
    "retrieve=0.2,least=0,estimate=0.3,iterations=3"
)
PROMPT = tuple(range(40, 190))
KINDS = [kind for kind in DISTURBANCES if kind != "speculate"]


@pytest.mark.parametrize("case", range(4 * len(KINDS)))
def test_same_bits_whatever_happens(case, make_engine):  # noqa: F811
    kind, rng = KINDS[case % len(KINDS)], random.Random(3000 + case)
    request = draw_request(rng)
    alone = make_engine().generate([request])["target"]
    engine = partial(make_engine, speculate=DRAFT, max_draft=rng.randint(1, 8))
    assert bits(disturbed(kind, request, rng, engine, "int8")) == bits(alone)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_are_made_and_held(temperature, make_engine):  # noqa: F811
    params = SamplingParams(60, temperature=temperature, seed=3, logprobs=0, ignore_eos=True)
    requests = [Request(f"r{i}", PROMPT[i:], params, index=i) for i in range(3)]
    plain, drafting = make_engine(), make_engine(speculate=DRAFT, max_draft=6)
    expected, found = plain.generate(requests), drafting.generate(requests)
    assert all(bits(expected[r.id]) == bits(found[r.id]) for r in requests)
    stats = drafting.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens  # the random model notices what is left out
    assert stats.steps < plain.stats().steps
    assert drafting.pool.free == drafting.pool.total


def test_an_index_that_reads_all_drafts_what_is_chosen(make_engine):  # noqa: F811
    engine = make_engine(speculate=DRAFT.replace("retrieve=0.2", "retrieve=1"), max_draft=4, quant="fp32")
    engine.generate([Request("a", PROMPT, SamplingParams(50, temperature=0.0, ignore_eos=True))])
    stats = engine.stats()
    assert stats.accepted_tokens == stats.draft_tokens > 30


def test_what_cannot_draft_says_so(make_engine):  # noqa: F811
    with pytest.raises(InvalidConfig, match="off, ngram or wave, got 'moba'"):
        EngineConfig(speculate="moba")
    with pytest.raises(InvalidConfig, match="leave out attention and kv_budget"):
        make_engine(speculate="wave", attention="wave")
    with pytest.raises(InvalidConfig, match=r"local \(4\) must not be below max_draft \(8\)"):
        make_engine(speculate="wave:local=4")
    with pytest.raises(InvalidConfig, match="native backend"):
        make_engine(speculate="wave", backend="torch")


# -- a request says how it is to be read -------------------------------------------------------------


def test_a_request_may_ask_for_exact_attention(make_engine):  # noqa: F811
    request = partial(Request, prompt=PROMPT, params=SamplingParams(40, temperature=0.0, logprobs=0))
    engine = make_engine(attention=DRAFT)
    answers = engine.generate([request("a", attention="full"), request("b"), request("c", attention=DRAFT)])
    assert bits(answers["a"]) == bits(make_engine().generate([request("a")])["a"])
    assert bits(answers["b"]) == bits(answers["c"]) != bits(answers["a"])
    make_engine().submit(request("d", attention="full"))


@pytest.mark.parametrize("attention", ["full", "wave", "moba"])
def test_a_request_for_what_is_not_here_is_refused(make_engine, attention):  # noqa: F811
    wrong = "sparse" if attention == "wave" else "wave"
    with pytest.raises(InvalidRequest, match=f"{attention} on this server, got '{wrong}'") as caught:
        make_engine(attention=attention).submit(Request("a", PROMPT, attention=wrong))
    assert caught.value.param == "attention"
    if attention == "moba":
        with pytest.raises(InvalidRequest, match="attention must be moba on this server, got 'full'"):
            make_engine(attention=attention).submit(Request("a", PROMPT, attention="full"))


def test_over_http(checkpoint):  # noqa: F811
    prompt = [40 + i for i in range(150)]
    body = {"prompt": prompt, "max_tokens": 30, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    with run_server(checkpoint, engine={"attention": DRAFT}) as server:
        answers = {}
        for attention in ("full", DRAFT, None):
            sent = body if attention is None else {**body, "attention": attention}
            answer = server.http.post("/v1/completions", json=sent).raise_for_status().json()
            answers[attention] = answer["choices"][0]["logprobs"]["token_logprobs"]
        wrong = server.http.post("/v1/chat/completions", json={"messages": [], "attention": "moba"})
        odd = server.http.post("/v1/completions", json={**body, "attention": 7})
        refused = server.http.post("/v1/completions", json={**body, "attention": "moba"})
    exact = Engine(EngineConfig(model=str(checkpoint), threads=1))
    outputs = exact.generate(
        [Request("a", tuple(prompt), SamplingParams(30, temperature=0.0, ignore_eos=True, logprobs=0))]
    )["a"]
    assert answers["full"] == [p.logprob for o in outputs for p in o.logprobs]
    assert answers[DRAFT] == answers[None] != answers["full"]
    for failed in (odd, refused):
        assert failed.status_code == 400 and failed.json()["error"]["param"] == "attention"
    assert wrong.status_code == 400
