"""D2: what a trainer reads from ``score()`` is, bit for bit, what generation reported, over drawn requests."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from statepool.engine.request import Request, SamplingParams

CASES = 50


@pytest.mark.parametrize("quant", ["int8", "int4", "bf16", "fp32"])
def test_drawn_generations_score_the_same(quant: str, make_engine: Any, record_property: Any) -> None:
    rng = random.Random()
    seed = rng.getrandbits(32)
    rng.seed(seed)
    scorer = make_engine(quant=quant, max_batched_tokens=rng.randint(8, 64), max_seqs=8)
    engine = make_engine(quant=quant, max_batched_tokens=rng.randint(8, 64), max_seqs=8)
    requests = [
        Request(
            f"r{number}",
            tuple(rng.randrange(256) for _ in range(rng.randint(1, 60))),
            SamplingParams(
                max_tokens=rng.randint(1, 30),
                temperature=rng.choice([0.0, 0.6, 1.0, 1.7]),
                top_p=rng.choice([1.0, 0.8]),
                top_k=rng.choice([0, 7]),
                repetition_penalty=rng.choice([1.0, 1.3]),
                seed=rng.getrandbits(32),
                logprobs=0,
                ignore_eos=True,
            ),
        )
        for number in range(CASES)
    ]
    answers = engine.generate(requests)
    for request in requests:
        outputs = answers[request.id]
        tokens = [token for output in outputs for token in output.tokens]
        reported = np.array([entry.logprob for output in outputs for entry in output.logprobs], np.float32)
        assert reported.size == len(tokens) == request.params.max_tokens, f"seed {seed}"
        scored = scorer.score([*request.prompt, *tokens])[len(request.prompt) - 1 :]
        assert scored.tobytes() == reported.tobytes(), f"seed {seed}, {request.id}"
    record_property("cases", CASES)
