"""Tool-call formats: what is a call, what stays text, and that the cut of the stream never matters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.engine.text.tools import PARSERS, ToolCall, pick

NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
PLAIN = st.text(st.characters(exclude_characters="<[{\r", exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=3)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3)
SPLINTERS = {
    "hermes": ["<tool_call>", "</tool_call>", '{"name": "f"', ', "arguments": {}}', '"', "<tool_", "call>"],
    "qwen3_coder": ["<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=x>", "</parameter>", "<"],
    "mistral": ["[TOOL_CALLS]", "[{", "[ARGS]", "f", '{"x": 1}', '[{"name": "f"}]', "[", "]", "}", "[TOOL_"],
    "llama3": ['{"name": "f"', "}", ', "parameters": {}', "<|python_tag|>", ";", "{", "<|py"],
    "pythonic": ["[f(", "x=1", ")", "]", "<|python_start|>", "<|python_end|>", '"', "'", ", g()", "[", "a"],
}


def write(name: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """A well-formed text of the format."""
    if name == "hermes":
        objects = [json.dumps({"name": f, "arguments": a}, ensure_ascii=False) for f, a in calls]
        return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in objects)
    if name == "mistral":
        return "[TOOL_CALLS] " + json.dumps([{"name": f, "arguments": a} for f, a in calls])
    if name == "llama3":
        return "; ".join(json.dumps({"name": f, "parameters": a}) for f, a in calls)
    return "[" + ", ".join(f"{f}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for f, a in calls) + "]"


def cut(data: st.DataObject, text: str) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def stream(name: str, pieces: list[str], tools: Any = None) -> tuple[str, list[ToolCall]]:
    parser = PARSERS[name](tools)
    parts = [*(parser.push(piece) for piece in pieces), parser.finish()]
    return "".join(part.content for part in parts), [call for part in parts for call in part.calls]


def plain(calls: list[ToolCall]) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("name", ["hermes", "mistral", "llama3", "pythonic"])
@given(calls=CALLS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_written_calls_are_read_back(name: str, calls: list[tuple[str, dict[str, Any]]], data: st.DataObject) -> None:
    if name == "pythonic" and any(keyword(k) for f, a in calls for k in (f, *a)):
        return
    content, found = stream(name, cut(data, write(name, calls)))
    assert content == ""
    assert plain(found) == calls


def keyword(word: str) -> bool:
    import keyword as python

    return python.iskeyword(word)


@pytest.mark.parametrize("name", sorted(PARSERS))
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_the_cut_never_matters(name: str, data: st.DataObject) -> None:
    part = st.one_of(st.sampled_from(SPLINTERS[name]), st.text(" \nab;", max_size=4))
    text = "".join(data.draw(st.lists(part, max_size=10)))
    whole = PARSERS[name].parse(text)
    assert stream(name, cut(data, text)) == whole
    assert stream(name, list(text)) == whole


def test_separators_before_the_first_call_do_not_end_the_start() -> None:
    whole = PARSERS["llama3"].parse(';{"name": "f"}')
    assert stream("llama3", [";", '{"name": "f"', "}"]) == whole
    assert [call.name for call in whole[1]] == ["f"]


@pytest.mark.parametrize("name", sorted(PARSERS))
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_text_without_calls_is_never_lost(name: str, data: st.DataObject) -> None:
    part = st.one_of(st.sampled_from(SPLINTERS[name]), PLAIN)
    text = "".join(data.draw(st.lists(part, max_size=8)))
    content, calls = stream(name, cut(data, text))
    if not calls:
        assert content == text


@given(before=PLAIN, after=PLAIN, calls=CALLS)
@settings(max_examples=40, deadline=None)
def test_text_around_calls_is_content(before: str, after: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    content, found = PARSERS["hermes"].parse(before + write("hermes", calls) + after)
    space = " \n\r\t"
    kept = after.lstrip(space)
    assert content == before.rstrip(space) + kept
    assert plain(found) == calls


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>{bad}</tool_call>"),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call> tail'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "argum'),
        ("hermes", "a <tool_call"),
        ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>"),
        ("qwen3_coder", "<tool_call><function=f><parameter=x>1</tool_call>"),
        ("qwen3_coder", "<tool_call>{}</tool_call>"),
        ("mistral", "[TOOL_CALLS] [1, 2]"),
        ("mistral", "[TOOL_CALLS] hello world"),
        ("mistral", '[{"x": 1}]'),
        ("mistral", '[{"name": "f"}'),
        ("llama3", '{"answer": 42}'),
        ("llama3", '{"name": "f", "parameters": {'),
        ("llama3", 'text {"name": "f", "parameters": {}}'),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[f(1)]"),
        ("pythonic", "[f(x=open('y'))]"),
        ("pythonic", "[f(**{})]"),
        ("pythonic", "[see (a) and (b)]"),
    ],
)
def test_malformed_calls_stay_content(name: str, text: str) -> None:
    assert PARSERS[name].parse(text) == (text, [])


def test_a_good_call_after_a_bad_one_is_found() -> None:
    good = '<tool_call>{"name": "g", "arguments": {"k": "</tool_call>"}}</tool_call>'
    content, calls = PARSERS["hermes"].parse("<tool_call>{bad}</tool_call>\n" + good)
    assert content == "<tool_call>{bad}</tool_call>"
    assert calls == [ToolCall("g", '{"k": "</tool_call>"}')]


def test_partial_tags_are_held_back_and_text_is_not() -> None:
    parser = PARSERS["hermes"]()
    assert parser.push("hello <tool").content == "hello"
    assert parser.push("box").content == " <toolbox"
    assert parser.push('<tool_call>{"name": "f"}').content == ""
    assert parser.push("</tool_call>").calls == (ToolCall("f", "{}"),)


def test_missing_closing_tag_at_the_end() -> None:
    assert PARSERS["hermes"].parse('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}')[1] == [
        ToolCall("f", '{"x": 1}')
    ]


def test_qwen3_coder_values_follow_the_schema() -> None:
    properties = {
        "n": {"type": "integer"},
        "s": {"type": "string"},
        "o": {"type": ["object", "null"]},
        "b": {"type": "boolean"},
        "bad": {"type": "integer"},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}]
    values = {"n": "3", "s": "3", "o": '{"a": [1]}', "b": "True", "bad": "x", "free": "7"}
    body = "\n".join(f"<parameter={key}>\n{value}\n</parameter>" for key, value in values.items())
    text = f"ok\n<tool_call>\n<function=f>\n{body}\n</function>\n</tool_call>"
    expected = {"n": 3, "s": "3", "o": {"a": [1]}, "b": True, "bad": "x", "free": "7"}
    for pieces in ([text], list(text)):
        content, calls = stream("qwen3_coder", pieces, tools)
        assert content == "ok"
        assert plain(calls) == [("f", expected)]


def test_qwen3_coder_keeps_code_as_written() -> None:
    code = 'def f(x):\n    return "</tool_call>" if x < 1 else "<b>"\n'
    text = f"<tool_call><function=write><parameter=code>\n{code}\n</parameter></function></tool_call>"
    assert plain(PARSERS["qwen3_coder"].parse(text)[1]) == [("write", {"code": code})]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("mistral", 'Hi [TOOL_CALLS]f[ARGS]{"x": "}"}[TOOL_CALLS]g{"y": 2}', [("f", {"x": "}"}), ("g", {"y": 2})]),
        ("mistral", ' [{"name": "f", "arguments": {"x": 1}}]', [("f", {"x": 1})]),
        ("llama3", '<|python_tag|>{"name": "f", "parameters": {"x": 1}}', [("f", {"x": 1})]),
        ("pythonic", "<|python_start|>[a.f(x=[1, (2,)], y=null)]<|python_end|>", [("a.f", {"x": [1, [2]], "y": None})]),
        ("pythonic", "[f(x='a]', y=-1.5, z={'k': True})]", [("f", {"x": "a]", "y": -1.5, "z": {"k": True}})]),
    ],
)
def test_other_spellings(name: str, text: str, expected: list[tuple[str, Any]]) -> None:
    content, calls = PARSERS[name].parse(text)
    assert plain(calls) == expected
    assert content in {"", "Hi"}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (None, "hermes"),
        ("{{ messages }}", "hermes"),
        ("<tool_call>{{ tool_call | tojson }}</tool_call>", "hermes"),
        ("<tool_call>\n<function=' ~ name ~ '>\n<parameter=' ~ key", "qwen3_coder"),
        ("[TOOL_CALLS] [", "mistral"),
        ("Environment: ipython\n", "llama3"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
    ],
)
def test_pick(source: str | None, name: str) -> None:
    assert pick(source) == name
