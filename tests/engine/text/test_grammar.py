"""Grammar: what is refused, masks, rollback and replay, forced tokens, and how short "shortest" is."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.core.errors import InvalidCheckpoint, InvalidRequest
from statepool.engine.request import GrammarSpec
from statepool.engine.text.grammar import Grammar, GrammarCompiler
from statepool.engine.text.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SPECS = [
    GrammarSpec("json_schema", json.dumps(PERSON)),
    GrammarSpec("json_object"),
    GrammarSpec("regex", r"[0-9]{3}-(ab|c)+"),
    GrammarSpec("lark", 'start: "a" (NUM | "(" start ")")\nNUM: /[0-9]+/'),
]


@pytest.fixture(scope="module")
def compiler(byte_level: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(byte_level)


def schema(value: Any) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(value))


def allowed(mask: np.ndarray | None) -> list[int]:
    assert mask is not None
    return [int(i) for i in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]


def walk(grammar: Grammar, rng: random.Random, budget: int) -> list[tuple[int, int]]:
    """Accepted (token, remaining) pairs of a drawn text."""
    taken = []
    for remaining in range(budget, 0, -1):
        if grammar.done:
            break
        token = rng.choice(allowed(grammar.mask(remaining)))
        while not grammar.accept(token, remaining):
            token = rng.choice(allowed(grammar.mask(remaining)))
        taken.append((token, remaining))
    return taken


@pytest.mark.parametrize(
    "value",
    [
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"not": {"type": "string"}},
        {"type": "array", "uniqueItems": True},
        {"enum": []},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"$ref": "#"},
        {"type": "string", "pattern": "(("},
        {"type": "string", "pattern": "^a{5}$", "maxLength": 1},
        {"$ref": "#/nope"},
        {"$ref": "http://example.org/schema"},
        {"type": "foo"},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"type": "object", "minProperties": 2},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        False,
        [],
    ],
)
def test_schemas_that_cannot_be_kept_are_refused(compiler: GrammarCompiler, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(schema(value))
    assert caught.value.param == "response_format"
    assert "response_format" in caught.value.message


def test_a_rule_that_needs_itself_is_refused(compiler: GrammarCompiler) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["next"]}
    with pytest.raises(InvalidRequest, match="needs itself"):
        compiler.compile(schema({"$defs": {"n": node}, "$ref": "#/$defs/n"}))


@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec("json_schema", "{"),
        GrammarSpec("json_schema", "[" * 50_000),
        GrammarSpec("json_schema", '{"const":"' + "x" * 300_000 + '"}'),
        GrammarSpec("regex", "(("),
        GrammarSpec("lark", "start: missing"),
    ],
)
def test_unreadable_grammars_are_refused(compiler: GrammarCompiler, spec: GrammarSpec) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(spec)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    ("value", "document"),
    [
        ({}, b"0"),
        (PERSON, b'{"name":"","age":0}'),
        ({"anyOf": [PERSON, {"type": "null"}]}, b"null"),
        ({"type": "integer", "multipleOf": 7, "minimum": 10}, b"14"),
        ({"type": "array", "minItems": 2, "items": {"enum": ["long", "b"]}}, b'["b","b"]'),
        ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]$"}, 6),
        ({"type": "string", "minLength": 300}, 302),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "minItems": 2}, b'[0,"x"]'),
        ({"allOf": [PERSON, {"required": ["tags"]}]}, b'{"name":"","age":0,"tags":[]}'),
    ],
)
def test_shortest_documents(compiler: GrammarCompiler, value: Any, document: bytes | int) -> None:
    least = compiler.check(schema(value), 1000)
    grammar, text = compiler.compile(schema(value)), b""
    for remaining in range(least, 0, -1):
        token = allowed(grammar.mask(remaining))[0]
        assert grammar.accept(token)
        text += compiler.spelling.tokens[token]
    assert grammar.accepting
    if isinstance(document, bytes):
        assert text == document
    else:
        assert len(text) == document


@pytest.mark.parametrize("pattern", ["(ab|c){2}x", "[0-9]{2}x", "the quick|brown", "a(b|cd)*e", "é+", "(quick )?fox"])
def test_least_tokens_equal_an_exhaustive_search(
    compiler: GrammarCompiler, byte_level: Tokenizer, pattern: str
) -> None:
    """Token by token, every token of the vocabulary: no text of fewer tokens matches."""
    least = compiler.compile(GrammarSpec("regex", pattern)).min_close()
    layer = [compiler.compile(GrammarSpec("regex", pattern))._matcher]
    for _ in range(least):
        assert not any(matcher.is_accepting() for matcher in layer)
        following = []
        for matcher in layer[:400]:
            for token in allowed(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint32)):
                child = matcher.deep_copy()
                child.consume_token(token)
                following.append(child)
        layer = following
    assert any(matcher.is_accepting() for matcher in layer)


def test_check_names_max_tokens(compiler: GrammarCompiler) -> None:
    spec = schema(PERSON)
    least = compiler.check(spec, 100)
    assert compiler.check(spec, least) == least
    with pytest.raises(InvalidRequest, match=f"{least} tokens") as caught:
        compiler.check(spec, least - 1)
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_the_tail_of_a_padded_vocabulary_is_masked(byte_level: Tokenizer, spec: GrammarSpec) -> None:
    padded = GrammarCompiler(byte_level, byte_level.vocab_size + 77)
    grammar, rng = padded.compile(spec), random.Random(1)
    plain = GrammarCompiler(byte_level).compile(spec)
    for remaining in range(40, 0, -1):
        mask, narrow = grammar.mask(remaining), plain.mask(remaining)
        if mask is None or narrow is None:
            break
        assert mask.shape == ((byte_level.vocab_size + 77 + 31) // 32,)
        assert mask.dtype == np.uint32
        assert allowed(mask) == allowed(narrow)
        token = rng.choice(allowed(mask))
        assert grammar.accept(token) == plain.accept(token)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidCheckpoint, match="vocab_size"):
        GrammarCompiler(byte_level, 10)


def test_a_tokenizer_without_an_end_token_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidCheckpoint, match="eos_token_id"):
        GrammarCompiler(Tokenizer(byte_level.backend))


@given(seed=st.integers(0, 10**6), spec=st.sampled_from(SPECS), data=st.data())
@settings(max_examples=60, deadline=None)
def test_rollback_and_replay_give_the_same_state(seed: int, spec: GrammarSpec, data: st.DataObject) -> None:
    compiler = _shared_compiler()
    grammar = compiler.compile(spec)
    taken = walk(grammar, random.Random(seed), 60)
    back = data.draw(st.integers(0, len(taken)))
    grammar.rollback(back)
    kept = taken[: len(taken) - back]
    replayed = compiler.compile(spec)
    for token, remaining in kept:
        assert replayed.accept(token, remaining)
    for remaining in (60 - len(kept), 1000):
        left, right = grammar.mask(remaining), replayed.mask(remaining)
        assert grammar.done == replayed.done
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            assert np.array_equal(left, right)
    assert grammar.min_close() == replayed.min_close()
    for token, remaining in taken[len(kept) :]:
        assert grammar.accept(token, remaining)


def test_rollback_beyond_the_start_is_refused(compiler: GrammarCompiler) -> None:
    with pytest.raises(ValueError, match="take back"):
        compiler.compile(SPECS[0]).rollback(1)


def test_forbidden_tokens_change_nothing(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    grammar = compiler.compile(SPECS[0])
    before = grammar.mask(100)
    for text in ("x", "[", "<|im_end|>", "<think>"):
        assert not grammar.accept(byte_level.encode(text, allow_special=True)[0])
    assert np.array_equal(before, grammar.mask(100))  # type: ignore[arg-type]


def test_control_tokens_are_not_text(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    grammar = compiler.compile(schema({"type": "string"}))
    for token in byte_level.encode('"the'):
        assert grammar.accept(token, 100)
    assert byte_level.control_ids.isdisjoint(allowed(grammar.mask(100)))


def test_the_end_token_follows_a_text_that_could_go_on(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    grammar = compiler.compile(schema({"type": "integer"}))
    assert grammar.accept(byte_level.encode("7")[0], 10)
    assert grammar.accepting
    assert not grammar.done
    assert byte_level.eos_ids[0] in allowed(grammar.mask(9))
    assert allowed(grammar.mask(1)) == sorted(byte_level.eos_ids)
    assert grammar.accept(byte_level.eos_ids[0], 9)
    assert grammar.done
    assert grammar.mask(8) is None
    grammar.rollback(1)
    assert not grammar.done


def test_a_complete_text_is_done_without_an_end_token(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    grammar = compiler.compile(schema({"const": [1]}))
    for token in byte_level.encode("[1]"):
        assert not grammar.done
        assert grammar.accept(token, 50)
    assert grammar.done
    assert grammar.min_close() == 0


def test_forced_tokens_are_accepted(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(GrammarSpec("regex", "the quick brown (fox|dog)"))
    forced = grammar.forced()
    assert b"".join(compiler.spelling.tokens[token] for token in forced).startswith(b"the quick")
    for token in forced:
        assert grammar.accept(token, 100)


def test_a_token_that_could_not_be_closed_is_refused(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    """The short alternative closes in two tokens; entering the long one must wait for a budget that holds it."""
    names = [f"field{i}" for i in range(30)]
    big = {"type": "object", "properties": {n: {"type": "null"} for n in names}, "required": names}
    spec = schema({"anyOf": [{"type": "null"}, {**big, "additionalProperties": False}]})
    opening = byte_level.encode("{")[0]
    grammar = compiler.compile(spec)
    assert opening in allowed(grammar.mask(40))
    assert not grammar.accept(opening)
    assert opening not in allowed(grammar.mask(40))
    assert grammar.accept(opening, 1000)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_white_space_never_runs(seed: int) -> None:
    compiler = _shared_compiler()
    grammar = compiler.compile(SPECS[0])
    taken = walk(grammar, random.Random(seed), 80)
    text = b"".join(compiler.spelling.tokens[token] for token, _ in taken)
    outside = re.sub(rb'"([^"\\]|\\.)*"', b'""', text)
    assert not re.search(rb"[ \n\t\r]{2}", outside)


def test_sentencepiece_vocabularies_work_too(sentencepiece: Tokenizer) -> None:
    compiler = GrammarCompiler(sentencepiece)
    for spec in SPECS:
        least = compiler.check(spec, 100)
        for seed in range(5):
            grammar = compiler.compile(spec)
            taken = walk(grammar, random.Random(seed), least + seed)
            assert grammar.accepting
            text = b"".join(compiler.spelling.tokens[t] for t, _ in taken if t not in sentencepiece.eos_ids)
            if spec.kind.startswith("json"):
                assert isinstance(json.loads(text), dict)


def _shared_compiler() -> GrammarCompiler:
    return _COMPILERS[0]


_COMPILERS: list[GrammarCompiler] = []


@pytest.fixture(scope="module", autouse=True)
def _share(compiler: GrammarCompiler) -> None:
    _COMPILERS.append(compiler)
