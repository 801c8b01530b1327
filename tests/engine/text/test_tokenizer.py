"""Tokenizer: bytes of tokens, control tokens kept from plain text, loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from statepool.core.errors import InvalidCheckpoint, InvalidRequest
from statepool.engine.text.tokenizer import Tokenizer

SHARED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Sentencepiece takes one leading space for its own, so no drawn text begins with one.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).map(lambda text: text.lstrip(" "))
SPELLED = st.lists(
    st.one_of(
        TEXT, st.sampled_from(["<|im_end|>", "<|im_start|>", "<think>", "<s>", "</s>", "[INST]", "<|im_", "end|>"])
    )
).map(lambda parts: "".join(parts).lstrip(" "))


@given(text=TEXT)
@SHARED
def test_plain_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=SPELLED)
@SHARED
def test_text_never_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


@given(text=TEXT)
@SHARED
def test_encoding_and_decoding_equal_the_backend(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    if tokenizer.control_ids.isdisjoint(tokenizer.backend.encode(text).ids):
        assert ids == tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.backend.decode(ids) == text


@given(text=SPELLED)
@SHARED
def test_trusted_text_is_parsed_as_the_backend_does(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text, allow_special=True) == tokenizer.backend.encode(text, add_special_tokens=False).ids


def test_decoding_leaves_out_special_tokens_only_when_asked(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>hi<think>", allow_special=True)
    assert byte_level.decode(ids) == "hi<think>"
    assert byte_level.decode(ids, skip_special=False) == "<|im_start|>hi<think>"


@given(data=st.data())
@SHARED
def test_bytes_of_tokens_add_up(byte_level: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, byte_level.vocab_size - 1), max_size=30))
    joined = b"".join(byte_level.token_bytes(i) for i in ids).decode("utf-8", errors="replace")
    assert byte_level.decode(ids, skip_special=False) == joined
    assert byte_level.backend.decode(ids, skip_special_tokens=False) == joined


def test_what_surrounds_a_sequence_is_added_on_request(sentencepiece: Tokenizer, byte_level: Tokenizer) -> None:
    state = json.loads(sentencepiece.backend.to_str())
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    framed = Tokenizer(Backend.from_str(json.dumps(state)))
    assert framed.encode("hello", add_special=True) == [1, *framed.encode("hello")]
    assert framed.encode("a <s>", add_special=True).count(1) == 1
    assert byte_level.encode("hello", add_special=True) == byte_level.encode("hello")


def test_a_unigram_model_cannot_reach_a_control_piece() -> None:
    pieces = [("<unk>", 0.0), ("<s>", -1.0), *((char, -3.0) for char in "▁<s>ab")]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(["<unk>", "<s>"])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("a<s>b <s>")
    assert 1 not in ids
    assert tokenizer.decode(ids) == "a<s>b <s>"


def test_no_text_is_reserved(tokenizer: Tokenizer) -> None:
    text = "a\U0010fffd\U0010fffc\U0010fffdb<think></s>"
    assert tokenizer.decode(tokenizer.encode_plain(text)) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lone_surrogates_are_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        byte_level.encode("a\ud800b")


@pytest.mark.parametrize("bad", [-1, 10**6, True, 1.5, "3"])
def test_ids_out_of_range_are_refused(byte_level: Tokenizer, bad: object) -> None:
    with pytest.raises(InvalidRequest, match="token id") as caught:
        byte_level.check_ids([1, bad], param="prompt")  # type: ignore[list-item]
    assert caught.value.param == "prompt"


def test_decoding_refuses_ids_beyond_the_vocabulary(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidRequest):
        byte_level.decode([byte_level.vocab_size])
    assert byte_level.token_bytes(byte_level.vocab_size) == b""


def test_load_reads_end_ids_from_every_config(byte_level: Tokenizer, tmp_path: Path) -> None:
    byte_level.backend.save(str(tmp_path / "tokenizer.json"))
    end, text_end = byte_level.eos_ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": end}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.eos_ids == (end, text_end)
    assert loaded.encode("quick brown") == byte_level.encode("quick brown")


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"model": {"type": "BPE"}}'])
def test_load_refuses_what_is_not_a_tokenizer(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_load_refuses_broken_configs(byte_level: Tokenizer, tmp_path: Path) -> None:
    byte_level.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InvalidCheckpoint, match=r"config\.json"):
        Tokenizer.load(tmp_path)


def test_other_decoders_are_refused() -> None:
    with pytest.raises(InvalidCheckpoint, match="decoder none"):
        Tokenizer(Backend(models.BPE()))
