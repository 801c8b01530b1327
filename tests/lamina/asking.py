"""Requests to compare engines with, and their answers to the last bit."""

import random

from statepool.engine.request import Request, SamplingParams


def requests(count, seed=0, lengths=(1, 90), answer=12, prefix=()):
    """Greedy and drawn ones, some with a common beginning."""
    rng = random.Random(seed)
    for i in range(count):
        tokens = [rng.randrange(3, 256) for _ in range(rng.randint(*lengths))]
        head = list(prefix) if i % 3 == 0 else []
        params = SamplingParams(
            max_tokens=answer, logprobs=2, temperature=(i % 2) * 0.9, seed=seed + i, stop_token_ids=(), ignore_eos=True
        )
        yield Request(f"r{i}", tuple(head + tokens), params)


def answers(engine, asked):
    """Every token with its log-probability, by request."""
    found = engine.generate(asked)
    return {
        name: [pair for output in outputs for pair in zip(output.tokens, output.logprobs or [], strict=False)]
        for name, outputs in found.items()
    }
