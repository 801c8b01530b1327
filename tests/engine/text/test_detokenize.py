"""Detokenizer: any cut of any ids adds up to the whole, and nothing half-read is shown."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statepool.engine.text.detokenize import Detokenizer
from statepool.engine.text.tokenizer import Tokenizer

SHARED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(data=st.data(), skip=st.booleans())
@SHARED
def test_pieces_add_up_to_decode(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    stream = Detokenizer(tokenizer, () if skip else None)
    pieces = [stream.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip_special=skip)


@given(text=st.text(st.sampled_from("aé你🙂 ß\n"), max_size=20).map(lambda text: text.lstrip(" ")))
@SHARED
def test_nothing_half_read_is_shown(tokenizer: Tokenizer, text: str) -> None:
    stream = Detokenizer(tokenizer)
    seen = ""
    for token in tokenizer.encode(text):
        seen += stream.push([token])
        assert text.startswith(seen)
        assert len(stream.pending) <= 3
    assert seen + stream.finish() == text


def test_text_that_continues_keeps_its_space(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("the dog")
    assert Detokenizer(sentencepiece).push(ids) == "the dog"
    assert Detokenizer(sentencepiece, at_start=False).push(ids) == " the dog"


def test_chosen_special_tokens_are_shown(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>a<|im_end|>", allow_special=True)
    assert Detokenizer(byte_level, ("<|im_end|>", "<|unknown|>")).push(ids) == "a<|im_end|>"


def test_an_unfinished_code_point_ends_as_a_replacement(byte_level: Tokenizer) -> None:
    ids = [i for i in range(byte_level.vocab_size) if byte_level.token_bytes(i) == b"\xf0"]
    stream = Detokenizer(byte_level)
    assert stream.push(ids) == ""
    assert stream.pending == b"\xf0"
    assert stream.finish() == "�"
