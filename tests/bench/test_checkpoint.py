"""The benchmark checkpoint is what a model library would have written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bench.checkpoint import SHAPES, Shape, checkpoint, to_bf16
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bench import checkpoint as module

TINY = Shape("tiny", layers=2, hidden=32, heads=4, kv_heads=2, head_dim=16, inter=48, vocab=300, positions=64)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "CACHE", tmp_path)
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    return checkpoint("tiny", seed=3)


def test_safetensors_reads_it(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        weight = file.get_tensor("model.layers.1.mlp.down_proj.weight")
        assert (file.get_tensor("model.norm.weight") == 1).all()
    assert len(names) == 2 + 11 * TINY.layers
    assert weight.dtype == torch.bfloat16
    assert tuple(weight.shape) == (TINY.hidden, TINY.inter)
    assert 0.015 < float(weight.float().std()) < 0.025


def test_same_bytes_every_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE", tmp_path / "again")
    again = checkpoint("tiny", seed=3)
    assert again != folder
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_tokenizer_knows_every_id_and_every_byte(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TINY.vocab
    assert all(tokenizer.id_to_token(number) is not None for number in range(TINY.vocab))
    text = "Grüße, 世界 \n\t!"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == TINY.vocab - 3


def test_sizes_of_the_large_shape() -> None:
    shape = SHAPES["qwen3-0.6b"]
    assert shape.block_parameters == 440_401_920
    assert shape.head_parameters == 155_582_464
    assert shape.kv_bytes(1) == 114_688


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100),
        min_size=1,
    )
)
def test_rounding_to_bf16_is_torchs(values: list[float]) -> None:
    torch = pytest.importorskip("torch")
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to_bf16(array), expected)
