"""Groups whose lengths differ, and engines small enough to run short of KV."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import SamplingParams
from statepool.rollout import Group

PROMPTS = ("Count from 3 to 9.", "What is 48 + 75?", "Count from 10 to 34.", "Repeat: fox owl river lamp")


@pytest.fixture(scope="session")
def engine() -> Callable[..., Engine]:
    """Engines by their number of KV blocks; the same one again for the same number and place."""
    made: dict[tuple[int, int], Engine] = {}

    def make(blocks: int, place: int = 0) -> Engine:
        if (blocks, place) not in made:
            made[blocks, place] = Engine(
                EngineConfig(kv_bytes=blocks * 16384, max_seqs=16, threads=1, max_waiting=2048)
            )
        found = made[blocks, place]
        found.draft_with(None)
        found.reset_prefix_cache()
        return found

    return make


@pytest.fixture(scope="session")
def groups(engine: Callable[..., Engine]) -> list[Group]:
    """Four groups of four, at temperature 1."""
    tokenizer = engine(128).tokenizer
    found = []
    for number, text in enumerate(PROMPTS):
        chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tuple(tokenizer.encode(chat, allow_special=True))
        found.append(Group(f"g{number}", prompt, 4, SamplingParams(max_tokens=100, temperature=1.2, logprobs=0)))
    return found
