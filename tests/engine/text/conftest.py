"""Tokenizers made on the spot: byte-level BPE with control tokens, and sentencepiece style with byte fallback."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from statepool.engine.text.tokenizer import Tokenizer

CORPUS = [
    'The quick brown fox jumps over the lazy dog. {"name": "x", "value": 12, "items": [true, false, null]}',
    '{"city": "Paris", "country": "France", "population": 2148000, "tags": ["a", "b"], "nested": {"k": 1.5}}',
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))  # 3\n",
    "Größe, naïve café — “quotes” … 你好 世界 🙂👍 Привет мир",
    "system user assistant tool call parse the message and reply with JSON",
] * 4
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = ["<tool_call>", "</tool_call>", "<think>", "</think>"]


def byte_level_backend(vocab_size: int = 700) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in MARKUP])
    return backend


def sentencepiece_backend(first_only: bool = True) -> Backend:
    """``first_only``: the Metaspace pre-tokenizer; otherwise the older normaliser that prefixes every stretch."""
    trained = Backend(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    base = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = base + [word for word in state["vocab"] if word not in base]
    merges = [tuple(merge) for merge in state["merges"]]
    model = models.BPE(
        vocab={word: i for i, word in enumerate(words)},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    backend = Backend(model)
    if first_only:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("[INST]", "[/INST]")])
    return backend


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    backend = byte_level_backend()
    return Tokenizer(backend, [backend.token_to_id("<|im_end|>"), backend.token_to_id("<|endoftext|>")])


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    backend = sentencepiece_backend()
    return Tokenizer(backend, [backend.token_to_id("</s>")])


@pytest.fixture(scope="session")
def legacy_sentencepiece() -> Tokenizer:
    backend = sentencepiece_backend(first_only=False)
    return Tokenizer(backend, [backend.token_to_id("</s>")])


@pytest.fixture(params=["byte_level", "sentencepiece", "legacy_sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found
