"""A3: answers of the bundled model when only a part of its context is read, ours beside the paper's and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from bench.attention.rivals import Rival
from bench.machine import LoadWatch
from bench.row import Row
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.tasks.synthetic import FAMILIES
from statepool.train.corpus import segments

_SIZE, _TAIL = 1900, 32
"""Tokens of a problem; its last 32 before the answer, which hold the question, run sparsely too."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A conversation up to the answer, and the answer, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def problems(engine: Engine, count: int) -> list[Problem]:
    """Needle questions over the longest context the model was trained for."""
    found = []
    for index in range(count):
        rng = Random(f"probe:{index}")
        parts = segments(FAMILIES["facts"].draw(rng, _SIZE, 1))
        ids = [engine.tokenizer.encode(text, allow_special=True) for text, _ in parts]
        turn = rng.choice([i for i, (_, learned) in enumerate(parts) if learned])
        found.append(Problem(tuple(t for part in ids[:turn] for t in part), tuple(ids[turn])))
    return found


def accuracy(engine: Engine, asked: Sequence[Problem]) -> float:
    """Share of problems whose every answer token is the likeliest one."""
    right = 0
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    for index, problem in enumerate(asked):
        name = f"p{index}"
        request = Request(name, problem.prompt + problem.answer, params, exact=len(problem.prompt) - _TAIL)
        (output,) = engine.generate([request])[name]
        assert output.prompt_logprobs is not None
        entries = output.prompt_logprobs[len(problem.prompt) :]
        right += all(entry is not None and entry.top[0][0] == entry.token for entry in entries)
    return right / len(asked)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A3a at 1.8 % of the clusters, A3b at 5 %."""
    if only and not any(name.startswith("A3") for name in only):
        return
    exact = Engine(EngineConfig(quant="fp32"))
    asked = problems(exact, 40 if quick else 300)
    full = accuracy(exact, asked)
    for name, share, target, what in (
        ("A3a", 0.018, 0.98, "needle answers at 1.8 % of the clusters"),
        ("A3b", 0.05, full - 0.005, "needle answers at 5 % of the clusters"),
    ):
        row = Row(name, f"{what}, bundled model at 1,800 tokens", "right", "higher", target)
        watch = LoadWatch()
        ours = {
            estimator: accuracy(_wave(f"wave:retrieve={share},estimator={estimator}"), asked)
            for estimator in ("diag2", "iso2")
        }
        others = {
            "the paper's settings": accuracy(_wave(f"wave:paper,update_segment=256,retrieve={share}"), asked),
            "without estimation": accuracy(_wave(f"wave:retrieve={share},estimate=0"), asked),
        }
        for rival in ("oracle", "quest", "moba", "streaming", "random"):
            others[rival] = accuracy(Rival.engine(rival, share), asked)
        best = max(ours, key=ours.__getitem__)
        row.value, row.own = ours[best], f"estimator {best}"
        row.peer, row.peer_value, row.peer_unit = "exact attention", full, "right"
        rest = {**{k: v for k, v in ours.items() if k != best}, **others}
        row.note = "; ".join(f"{who} {value:.3f}" for who, value in rest.items())
        row.command = "python -m bench attention --only A3"
        row.load = watch.stop()
        yield row


def _wave(attention: str) -> Engine:
    return Engine(EngineConfig(quant="fp32", attention=attention))
