"""Constrained text always closes within its budget: drawn schemas, drawn budgets, a sampler with no preference."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from statepool.engine.request import GrammarSpec
from statepool.engine.text.grammar import Grammar, GrammarCompiler
from statepool.engine.text.tokenizer import Tokenizer

NAMES = ["name", "age", "id", "tags", "city", "größe", 'a"b', "x", "items", "value", "note", "kind"]


def draw_string(rng: random.Random) -> dict[str, Any]:
    kind = rng.randrange(5)
    if kind == 0:
        return {"type": "string"}
    if kind == 1:
        return {"type": "string", "maxLength": rng.randrange(0, 12)}
    if kind == 2:
        low = rng.randrange(0, 6)
        return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(0, 5)}
    if kind == 3:
        return {
            "type": "string",
            "pattern": rng.choice(["^[A-Z]{2}-\\d{3}$", "^(ab|c)+$", "^x[0-9]*y$", "^[a-f0-9]{8}$"]),
        }
    return {"type": "string", "format": rng.choice(["date", "uuid", "ipv4", "time"])}


def draw_number(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(["integer", "number"])
    low = rng.randrange(-150, 1200)
    shape = rng.randrange(4)
    if shape == 0:
        return {"type": kind}
    if shape == 1:
        return {"type": kind, "minimum": low, "maximum": low + rng.randrange(1, 300)}
    if shape == 2:
        return {"type": kind, "exclusiveMinimum": low}
    return {"type": kind, "maximum": low}


def draw_object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randrange(0, 5))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: draw_schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    if rng.random() < 0.7:
        schema["additionalProperties"] = False
    elif rng.random() < 0.5:
        schema["additionalProperties"] = draw_schema(rng, 0)
    return schema


def draw_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.randrange(10 if depth > 0 else 6)
    if kind == 0:
        return draw_string(rng)
    if kind == 1:
        return draw_number(rng)
    if kind == 2:
        return {"enum": rng.sample(["red", "green", "gr", "a\nb", 1, 12, None, True, "é🙂", 2.5, [1], {"k": 0}], 3)}
    if kind == 3:
        return {"const": rng.choice(["fixed", 7, None, {"a": [1, 2]}])}
    if kind == 4:
        return {"type": rng.choice(["boolean", "null", "string", "integer"])}
    if kind == 5:
        return {"type": rng.sample(["string", "null", "integer", "array"], 2)}
    if kind == 6:
        low = rng.randrange(0, 3)
        array: dict[str, Any] = {"type": "array", "items": draw_schema(rng, depth - 1), "minItems": low}
        if rng.random() < 0.5:
            array["maxItems"] = low + rng.randrange(0, 3)
        return array
    if kind == 7:
        return {"anyOf": [draw_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]}
    return draw_object(rng, depth)


def draw_recursive(rng: random.Random) -> dict[str, Any]:
    """A tree, a linked list, or an expression whose short alternative comes last."""
    payload = draw_schema(rng, 1)
    shape = rng.randrange(3)
    me = {"$ref": "#/$defs/node"}
    if shape == 0:
        node: dict[str, Any] = {"type": "object", "properties": {"v": payload, "kids": {"type": "array", "items": me}}}
        node["required"] = ["v", "kids"]
    elif shape == 1:
        node = {"type": "object", "properties": {"v": payload, "next": {"anyOf": [me, {"type": "null"}]}}}
        node["required"] = ["next"]
    else:
        branch = {"type": "object", "properties": {"op": {"enum": ["add", "neg"]}, "left": me, "right": me}}
        branch.update(required=["op", "left", "right"], additionalProperties=False)
        leaf = {"type": "object", "properties": {"op": {"const": "lit"}, "value": payload}, "required": ["op", "value"]}
        leaf["additionalProperties"] = False
        node = {"anyOf": [branch, leaf]}
    if "anyOf" not in node:
        node["additionalProperties"] = False
    return {"$defs": {"node": node}, **me}


def allowed(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def write(grammar: Grammar, tokenizer: Tokenizer, budget: int, rng: random.Random) -> tuple[bytes, bool]:
    """Draw evenly from what is allowed until the text ends or the budget does; with the invariant checked."""
    text = b""
    for remaining in range(budget, 0, -1):
        assert grammar.min_close() <= remaining
        while True:
            mask = grammar.mask(remaining)
            assert mask is not None
            token = int(rng.choice(allowed(mask)))
            if grammar.accept(token):
                break
        if token in tokenizer.eos_ids:
            break
        text += tokenizer.token_bytes(token)
        if grammar.done:
            break
    return text, grammar.accepting


def run_case(compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    schema = draw_recursive(rng) if seed % 4 == 0 else draw_schema(rng, 3)
    spec = GrammarSpec("json_schema", json.dumps(schema))
    least = compiler.check(spec, 10_000)
    for budget in (least, least + 1, least + rng.randrange(2, 12), least + rng.randrange(12, 80)):
        text, closed = write(compiler.compile(spec), tokenizer, budget, rng)
        assert closed, (schema, budget, text)
        document = json.loads(text)
        jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)


@pytest.fixture(scope="module")
def compiler(byte_level: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(byte_level)


@pytest.mark.parametrize("seed", range(60))
def test_drawn_schemas_close_within_drawn_budgets(compiler: GrammarCompiler, byte_level: Tokenizer, seed: int) -> None:
    run_case(compiler, byte_level, seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_hundred_schemas_close(compiler: GrammarCompiler, byte_level: Tokenizer, record_property: Any) -> None:
    for seed in range(1000, 1500):
        run_case(compiler, byte_level, seed)
    record_property("schemas", 500)
