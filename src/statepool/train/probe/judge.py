"""How many answers stay right when attention reads a part of the text: ours, the paper's settings and others.

The text is computed exactly; the questions behind it and their answers run through the attention in question. An answer
counts if every token of it is the likeliest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.tasks.synthetic import FAMILIES
from statepool.train.corpus import segments
from statepool.train.probe.questions import KINDS, VOCABULARY, Question
from statepool.train.probe.rivals import RIVALS, Rival

ASKED = 8
"""Questions behind a text."""
TAIL = 32
"""Tokens before the answer of a text model, which hold its question."""


@dataclass(frozen=True, slots=True)
class Score:
    """How many of how many answers were right."""

    name: str
    right: int
    answers: int

    @property
    def share(self) -> float:
        """Right answers of all."""
        return self.right / self.answers


def questions(model: str, count: int, length: int) -> list[Question]:
    """Held-out texts: needles and chains in turn for a probe, facts in words for any other model.

    Raises:
        InvalidConfig: ``length`` is too short for the questions.
    """
    if length < 128:
        raise InvalidConfig(f"length must be at least 128 tokens, got {length}", param="length")
    engine = Engine(EngineConfig(model=model))
    if engine.tokenizer.vocab_size != VOCABULARY:
        return facts(engine, count, length)
    kinds = list(KINDS.values())
    return [kinds[i % 2](Random(f"held out:{i}"), length, min(length // 10, 192), ASKED) for i in range(count)]


def facts(engine: Engine, count: int, length: int) -> list[Question]:
    """Conversations of about ``length`` tokens about facts, up to one answer each."""
    found = []
    for index in range(count):
        rng = Random(f"probe:{index}")
        parts = segments(FAMILIES["facts"].draw(rng, length, 1))
        ids = [engine.tokenizer.encode(text, allow_special=True) for text, _ in parts]
        turn = rng.choice([i for i, (_, learned) in enumerate(parts) if learned])
        prompt = tuple(t for part in ids[:turn] for t in part)
        answer = tuple(range(len(prompt), len(prompt) + len(ids[turn])))
        found.append(Question(prompt + tuple(ids[turn]), len(prompt) - TAIL, (answer,)))
    return found


def score(name: str, engine: Engine, asked: Sequence[Question]) -> Score:
    """Count the right answers of ``engine``."""
    right = 0
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    for index, question in enumerate(asked):
        request = Request(f"p{index}", question.tokens, params, exact=question.body)
        (output,) = engine.generate([request])[request.id]
        assert output.prompt_logprobs is not None
        for answer in question.answers:
            entries = [output.prompt_logprobs[at] for at in answer]
            right += all(entry is not None and entry.top[0][0] == entry.token for entry in entries)
    return Score(name, right, sum(len(question.answers) for question in asked))


def engine_of(model: str, name: str, share: float, tokens_per_cluster: int = 16) -> Engine:
    """An engine in float32 whose attention is ``name``: ``full``, a rival's name, or as ``--attention`` has it.

    Args:
        model: as in ``EngineConfig``.
        name: where it is a wave without ``retrieve``, ``share`` stands for it and is kept to, however few that are.
        share: of the clusters, that a wave reads whole.
        tokens_per_cluster: of the wave whose bytes a rival may read.
    """
    if name in RIVALS:
        return Rival.engine(model, name, share, tokens_per_cluster)
    if name.partition(":")[0] == "wave" and "retrieve=" not in name:
        name += f"{',' if ':' in name else ':'}retrieve={share},least=0"
    return Engine(EngineConfig(model=model, quant="fp32", attention=name))
