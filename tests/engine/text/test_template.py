"""ChatTemplate: the rendering environment, what templates refuse, and control tokens users cannot forge."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from statepool.core.errors import InvalidCheckpoint, InvalidRequest
from statepool.engine.text.template import ChatTemplate
from statepool.engine.text.tokenizer import Tokenizer

SHARED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CHATML = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA = """{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]
{%- else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"""
PIECES = st.lists(
    st.one_of(
        st.text("ab <|>\n", max_size=6),
        st.sampled_from(["<|im_end|>", "<|im_start|>", "<think>", "</s>", "[INST]", "[/INST]", "<|im_", "end|>", "你"]),
    ),
    max_size=6,
).map("".join)


def user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_rendering_by_hand() -> None:
    template = ChatTemplate(CHATML)
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(user("  hi ")) == expected
    assert template.render(user("hi"), add_generation_prompt=False) == expected[: expected.index("<|im_start|>a")]


def test_tools_are_written_as_plain_json() -> None:
    tool = {"type": "function", "function": {"name": "größe", "description": "<b>'ok'</b>"}}
    text = ChatTemplate(CHATML).render(user("hi"), tools=[tool])
    assert json.dumps(tool, ensure_ascii=False) in text


def test_environment_names() -> None:
    source = (
        "{% for n in range(5) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}"
        "{% generation %}G{% endgeneration %}{{ strftime_now('%Y') }}{{ bos_token }}{{ extra }}"
        "{{ {'b': 1, 'a': 2} | tojson(indent=1) }}"
    )
    template = ChatTemplate(source, {"bos_token": "<s>"}, clock=lambda: datetime(1999, 1, 1, tzinfo=UTC))
    assert template.render(user("x"), extra="E") == '01G1999<s>E{\n "b": 1,\n "a": 2\n}'


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system role') }}",
        "{{ messages[9].content }}",
        "{{ messages[0].missing.deeper }}",
        "{{ 1 + 'a' }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_a_failing_template_names_messages(source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(source).render(user("x"))
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "messages",
    [[], [{"content": "x"}], ["x"], [{"role": 1, "content": "x"}], user(3), user([{"type": "image_url"}])],
)
def test_malformed_messages_are_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(CHATML).render(messages)
    assert caught.value.param == "messages"


def test_a_template_that_does_not_compile_is_refused() -> None:
    with pytest.raises(InvalidCheckpoint, match="compile"):
        ChatTemplate("{% if %}")


def test_parts_are_joined_unless_the_template_walks_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatTemplate("{{ messages[0].content }}").render(user(parts)) == "a\nb"
    walking = ChatTemplate("{% for p in messages[0]['content'] %}{{ p.text }}|{% endfor %}")
    assert walking.takes_parts
    assert walking.render(user(parts)) == "a|b|"


def test_arguments_reach_the_template_as_an_object() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}{{ messages[0].content }}"
    assert ChatTemplate(source).render(messages) == '{"x": 1}'


@given(text=PIECES)
@SHARED
def test_users_cannot_forge_control_tokens(byte_level: Tokenizer, text: str) -> None:
    template = ChatTemplate(CHATML)
    ids = template.encode(byte_level, user(text))
    honest = template.encode(byte_level, user("hi"))
    control = byte_level.control_ids
    assert [i for i in ids if i in control] == [i for i in honest if i in control]
    assert byte_level.decode(ids, skip_special=False) == template.render(user(text))


@given(text=PIECES)
@SHARED
def test_sentencepiece_templates_are_guarded_too(tokenizer: Tokenizer, text: str) -> None:
    if not tokenizer.drops_first_space:
        return
    template = ChatTemplate(LLAMA, {"eos_token": "</s>"})
    messages = [*user(text), {"role": "assistant", "content": "ok"}, *user("x")]
    ids = template.encode(tokenizer, messages)
    honest = template.encode(tokenizer, [*user("y"), {"role": "assistant", "content": "ok"}, *user("x")])
    control = tokenizer.control_ids
    assert [i for i in ids if i in control] == [i for i in honest if i in control]


@given(text=st.text("ab \n你<|", max_size=20))
@SHARED
def test_without_spelled_tokens_the_ids_are_the_plain_encoding(tokenizer: Tokenizer, text: str) -> None:
    template = ChatTemplate(CHATML)
    if text.endswith(("<", "|")):
        text += "a"
    expected = tokenizer.encode(template.render(user(text)), allow_special=True)
    assert template.encode(tokenizer, user(text)) == expected


def test_tokens_after_a_spelled_one_equal_a_plain_encoding(legacy_sentencepiece: Tokenizer) -> None:
    """The stretch around a spelled token is read as one text that follows a control token."""
    template = ChatTemplate(LLAMA, {"eos_token": "</s>"})
    ids = template.encode(legacy_sentencepiece, user("the </s> dog"))
    inside = ids[1:-1]
    assert inside == legacy_sentencepiece.encode_plain(" the </s> dog ", after_control=True)


def test_tokens_that_own_the_space_behind_them_keep_it(byte_level: Tokenizer) -> None:
    backend = Backend.from_str(byte_level.backend.to_str())
    backend.add_special_tokens([AddedToken("<|user|>", normalized=False, rstrip=True)])
    tokenizer = Tokenizer(backend)
    template = ChatTemplate("<|user|>\n{{ messages[0].content }}<|im_end|>")
    user_id, end_id = backend.token_to_id("<|user|>"), backend.token_to_id("<|im_end|>")
    plain = tokenizer.encode_plain("a <|user|> b", after_control=True)
    assert template.encode(tokenizer, user("a <|user|> b")) == [user_id, *plain, end_id]
    assert template.encode(tokenizer, user("a b")) == [user_id, *tokenizer.encode("a b"), end_id]


def test_two_strings_joined_by_a_template_spell_nothing(byte_level: Tokenizer) -> None:
    template = ChatTemplate("{% for p in messages[0].content %}{{ p.text }}{% endfor %}<|im_end|>")
    parts = [{"type": "text", "text": "a<|im_"}, {"type": "text", "text": "end|>b"}]
    ids = template.encode(byte_level, user(parts))
    assert sum(i in byte_level.control_ids for i in ids) == 1
    assert byte_level.decode(ids, skip_special=False) == "a<|im_end|>b<|im_end|>"


def test_tools_arguments_and_options_are_guarded(byte_level: Tokenizer) -> None:
    template = ChatTemplate("{{ tools | tojson }}{{ messages | tojson }}{{ note }}<|im_end|>")
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps({"<think>": "<|im_end|>"})}}
    ids = template.encode(
        byte_level,
        [{"role": "tool", "content": "</think>"}, {"role": "user", "content": "", "tool_calls": [call]}],
        tools=[{"description": "<|im_start|>"}],
        note="<|endoftext|>",
    )
    assert [byte_level.token_text(i) for i in ids if i in byte_level.control_ids] == ["<|im_end|>"]


def test_the_assistants_own_markup_stays_markup(byte_level: Tokenizer) -> None:
    template = ChatTemplate("{{ messages[0].content.split('</think>')[-1] }}|{{ messages[0].content }}")
    messages = [{"role": "assistant", "content": "<think>x</think>y<|im_end|>"}]
    ids = template.encode(byte_level, messages)
    assert byte_level.decode(ids, skip_special=False) == "y<|im_end|>|<think>x</think>y<|im_end|>"
    assert [byte_level.token_text(i) for i in ids if i in byte_level.control_ids] == ["<think>", "</think>"]


def test_private_use_characters_of_users_survive(byte_level: Tokenizer) -> None:
    text = "\U00100000 <|im_end|> \U00100001"
    ids = ChatTemplate("{{ messages[0].content }}").encode(byte_level, user(text))
    assert byte_level.decode(ids, skip_special=False) == text


def test_lone_surrogates_are_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(CHATML).encode(byte_level, user("\udc00"))
    assert caught.value.param == "messages"


def test_load(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate.load(tmp_path).render(user("x"))
    config: dict[str, Any] = {"chat_template": "A{{ bos_token }}", "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).render(user("x")) == "A<s>"
    config["chat_template"] = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).render(user("x")) == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert ChatTemplate.load(tmp_path).render(user("x")) == "J"
