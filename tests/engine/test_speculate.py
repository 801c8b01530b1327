"""S2: drafts change how fast, never what. And they do make steps fewer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.engine.request import Request, SamplingParams
from statepool.engine.speculate import NgramDrafter

LOOP = tuple([11, 12, 13, 14, 15] * 8)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_tokens_are_identical_with_and_without(temperature, make_engine):
    # A strong bias towards a few tokens makes n-grams repeat, so that drafts are tried and partly accepted.
    bias = dict.fromkeys((11, 12, 13), 9.0)
    requests = [
        Request(f"r{i}", LOOP[i:], SamplingParams(64, temperature=temperature, seed=i, logit_bias=bias, logprobs=0))
        for i in range(6)
    ]
    plain = make_engine().generate(requests)
    engine = make_engine(speculate="ngram", max_draft=6)
    drafted = engine.generate(requests)
    for request in requests:
        for field in ("tokens", "logprobs", "sampled_logprobs"):
            a, b = ([v for o in outputs[request.id] for v in getattr(o, field)] for outputs in (plain, drafted))
            assert a == b
    stats = engine.stats()
    assert stats.draft_tokens > 0
    assert sum(o[-1].usage.draft_tokens for o in drafted.values()) == stats.draft_tokens
    if temperature == 0.0:
        assert stats.accepted_tokens > 0
        assert stats.steps < make_steps(requests, make_engine)


def make_steps(requests, make_engine):
    engine = make_engine()
    engine.generate(requests)
    return engine.stats().steps


def test_sampled_tokens_follow_the_model_with_drafts(make_engine):
    """Chi-square of the first two tokens of many seeds against the model's own probabilities."""
    bias = dict.fromkeys((1, 2, 3), 12.0)
    prompt = (1, 2, 3) * 4
    engine = make_engine(speculate="ngram", max_seqs=16)
    n = 600
    requests = [
        Request(f"r{i}", prompt, SamplingParams(4, seed=i, logit_bias=bias, logprobs=0, ignore_eos=True))
        for i in range(n)
    ]
    outputs = engine.generate(requests)
    tokens = np.array([[t for o in outputs[r.id] for t in o.tokens] for r in requests])
    assert engine.stats().draft_tokens > 0

    def probabilities(context):
        weights = []
        for token in (1, 2, 3):
            raw = engine.score((*context, token))[-1]
            weights.append(np.exp(float(raw) + 12.0))
        return np.array(weights) / sum(weights)

    first = np.bincount(tokens[:, 0], minlength=4)[1:4]
    expected = probabilities(prompt) * first.sum()
    assert first.sum() > 0.99 * n
    assert ((first - expected) ** 2 / expected).sum() < 9.21  # 2 degrees of freedom, p = 0.01
    most = int(np.argmax(first)) + 1
    second = np.bincount(tokens[tokens[:, 0] == most, 1], minlength=4)[1:4]
    expected = probabilities((*prompt, most)) * second.sum()
    assert ((second - expected) ** 2 / expected).sum() < 9.21


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 8))
def test_a_draft_is_what_followed_the_same_ngram_last_time(tokens, length):
    drafter = NgramDrafter(length, order=2)
    for end in range(1, len(tokens) + 1):
        prefix = tokens[:end]
        draft = drafter.draft(prefix)
        places = [i for i in range(2, end) if prefix[i - 2 : i] == prefix[-2:]]
        assert draft == (prefix[places[-1] : places[-1] + length] if places and end >= 2 else [])


def test_drafting_stops_where_it_does_not_pay():
    drafter = NgramDrafter(8, order=2, backoff=10)
    tokens = [1, 2, 3, 1, 2]
    assert drafter.draft(tokens) == [3, 1, 2]
    drafter.observe(3, 0, 6)
    assert drafter.draft([*tokens, 1, 2]) == []
    tokens += [9] * 9 + [1, 2]
    assert len(drafter.draft(tokens)) == 1
    drafter.observe(1, 1, 20)
    tokens += [5, 1, 2]
    assert len(drafter.draft(tokens)) == 2
