"""Router: reasoning, content and calls apart, whatever the cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.engine.text.router import Routed, Router, route
from statepool.engine.text.tools import ToolCall
from statepool.engine.text.tools.hermes import HermesParser

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
PARTS = st.one_of(
    st.sampled_from(["<think>", "</think>", CALL, "<tool_call>", "<th", "ink>", "</", "\n\n"]),
    st.text(" \nab", max_size=4),
)


@given(text=st.lists(PARTS, max_size=8).map("".join), data=st.data(), thinking=st.booleans(), reasoning=st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_cut_never_matters(text: str, data: st.DataObject, thinking: bool, reasoning: bool) -> None:
    whole = route(text, HermesParser(), reasoning, thinking)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    router = Router(HermesParser(), reasoning, thinking)
    parts = [router.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parts.append(router.finish())
    assert "".join(part.content for part in parts) == whole.content
    assert "".join(part.reasoning for part in parts) == whole.reasoning
    assert tuple(call for part in parts for call in part.calls) == whole.calls


def test_all_three_kinds() -> None:
    text = f"\n<think>\nwhy {CALL}\n</think>\n\nbecause\n{CALL}"
    assert route(text, HermesParser()) == Routed("because", f"why {CALL}", (ToolCall("f", "{}"),))


def test_a_prompt_that_opened_the_tag() -> None:
    assert route("why</think>so", thinking=True) == Routed("so", "why")
    assert route("why", thinking=True) == Routed("", "why")


def test_tags_are_content_when_reasoning_is_off_or_late() -> None:
    assert route("<think>a</think>b", reasoning=False) == Routed("<think>a</think>b")
    assert route("b <think>a</think>") == Routed("b <think>a</think>")


def test_partial_tags_are_held_back() -> None:
    router = Router()
    assert router.push("<thi") == Routed()
    assert router.push("nk>so </thi") == Routed(reasoning="so")
    assert router.push("ng</think>") == Routed(reasoning=" </thing")
    assert router.push("\n x") == Routed("x")
