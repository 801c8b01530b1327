"""Readers: pieces depend on the whole text, never on how it was cut."""

import itertools
import json

from hypothesis import example, given
from hypothesis import strategies as st

from statepool.engine.text.router import Router
from statepool.engine.text.tools import HermesParser
from statepool.serve.reading import (
    AnyCallReader,
    CallArguments,
    CallStart,
    Content,
    NamedCallReader,
    PlainReader,
    Reasoning,
    RoutedReader,
)


def read(reader, text, cuts):
    """Everything a reader says about ``text`` given in pieces: content, reasoning, [(name, arguments)]."""
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [
        piece for low, high in itertools.pairwise(bounds) for piece in reader.push(text[low:high])
    ] + reader.finish()
    content, reasoning, calls = "", "", []
    for piece in pieces:
        match piece:
            case Content(text=part):
                content += part
            case Reasoning(text=part):
                reasoning += part
            case CallStart(index=index, name=name):
                assert index == len(calls)
                calls.append([name, ""])
            case CallArguments(index=index, text=part):
                calls[index][1] += part
    return content, reasoning, [tuple(call) for call in calls]


cuts = st.lists(st.integers(0, 200), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=4)


@given(st.text(max_size=60), cuts)
def test_plain_text_is_content(text, cuts):
    assert read(PlainReader(), text, cuts) == (text, "", [])


@given(objects, cuts)
def test_a_named_call_is_its_arguments(arguments, cuts):
    text = json.dumps(arguments)
    assert read(NamedCallReader("f"), text, cuts) == ("", "", [("f", text)])


@example({}, [33], " ")  # between the colon and the space
@given(objects, cuts, st.sampled_from(["", " ", "\n"]))
def test_any_call_loses_only_its_wrapping(arguments, cuts, space):
    inner = json.dumps(arguments)
    text = f'{{{space}"name":{space}"look_up",{space}"arguments":{space}{inner}{space}}}'
    content, reasoning, [(name, given_arguments)] = read(AnyCallReader(), text, cuts)
    assert (content, reasoning, name) == ("", "", "look_up")
    assert given_arguments.rstrip() == inner


@given(st.text(st.characters(exclude_characters="<>"), max_size=30), objects, cuts)
def test_reasoning_content_and_calls_are_told_apart(thought, arguments, cuts):
    call = json.dumps({"name": "go", "arguments": arguments})
    text = f"<think>\n{thought}\n</think>\n\nhello\n<tool_call>\n{call}\n</tool_call>"
    content, reasoning, calls = read(RoutedReader(Router(HermesParser())), text, cuts)
    assert content == "hello"
    assert reasoning == thought.strip(" \n\r\t")
    assert [(name, json.loads(given)) for name, given in calls] == [("go", arguments)]


def test_a_call_cut_short_is_what_came():
    assert read(AnyCallReader(), '{"name": "f", "argum', []) == ('{"name": "f", "argum', "", [])
    assert read(AnyCallReader(), '{"name": "f", "arguments": {"a": 1', []) == ("", "", [("f", '{"a": 1')])
