"""Structured output through the engine: a random model has no preference, and its JSON still parses and validates."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from statepool.core.errors import InvalidRequest
from statepool.engine.request import GrammarSpec, Output, Request, SamplingParams
from statepool.engine.text.grammar import GrammarCompiler

ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 1, "maximum": 999},
        "kind": {"enum": ["new", "paid", "sent"]},
        "lines": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "properties": {"sku": {"type": "string", "pattern": "^[A-Z]{2}[0-9]$"}}},
        },
        "note": {"anyOf": [{"type": "string", "maxLength": 20}, {"type": "null"}]},
    },
    "required": ["id", "kind", "lines", "note"],
    "additionalProperties": False,
}
SPEC = GrammarSpec("json_schema", json.dumps(ORDER))
PROMPT = (1, 2, 3, 4)


def drain(engine: Any, *requests: Request) -> dict[str, list[Output]]:
    outputs: dict[str, list[Output]] = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for output in engine.step():
            outputs[output.id].append(output)
    return outputs


def ask(name: str, budget: int, seed: int, temperature: float = 1.5) -> Request:
    return Request(name, PROMPT, SamplingParams(budget, temperature=temperature, seed=seed, grammar=SPEC))


@pytest.fixture
def least(make_engine: Callable[..., Any]) -> int:
    return GrammarCompiler(make_engine().tokenizer).check(SPEC, 10_000)


@pytest.mark.parametrize("speculate", ["off", "ngram"])
def test_every_budget_closes_and_validates(make_engine: Callable[..., Any], least: int, speculate: str) -> None:
    engine = make_engine(speculate=speculate)
    budgets = [least, least + 1, least + 2, least + 7, least + 40]
    outputs = drain(engine, *(ask(str(budget), budget, budget) for budget in budgets))
    for budget in budgets:
        parts = outputs[str(budget)]
        assert parts[-1].finish_reason == "stop"
        assert sum(len(part.tokens) for part in parts) <= budget
        jsonschema.validate(json.loads("".join(part.text for part in parts)), ORDER)


def test_speculation_changes_nothing(make_engine: Callable[..., Any], least: int) -> None:
    runs = [drain(make_engine(speculate=mode), ask("a", least + 60, 5)) for mode in ("off", "ngram")]
    plain, drafted = ([token for part in run["a"] for token in part.tokens] for run in runs)
    assert plain == drafted


def test_a_moved_request_goes_on_as_it_would_have(make_engine: Callable[..., Any], least: int) -> None:
    whole = drain(make_engine(), ask("a", least + 30, 3))["a"]
    first, second = make_engine(), make_engine()
    first.submit(ask("a", least + 30, 3))
    parts: list[Output] = []
    for _ in range(least // 2):
        parts += first.step()
    name = second.import_state(first.export_state("a"))
    while second.has_work:
        parts += second.step()
    assert name == "a"
    assert [t for part in parts for t in part.tokens] == [t for part in whole for t in part.tokens]
    assert "".join(part.text for part in parts) == "".join(part.text for part in whole)


def test_a_budget_that_cannot_hold_the_shortest_document_is_refused(
    make_engine: Callable[..., Any], least: int
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_engine().submit(ask("a", least - 1, 0))
    assert caught.value.param == "max_tokens"
