"""Pretraining: loss falls, a resumed run equals an unbroken one, and the export is what readers of the form expect."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import jinja2.sandbox
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer

from statepool import bundled
from statepool.tasks.synthetic import FAMILIES
from statepool.train import curve, evaluate, pretrain
from statepool.train.corpus import Corpus, Stage, segments
from statepool.train.export import export
from statepool.train.muon import orthogonal
from statepool.train.tokenizer import SPECIAL, TAGS
from statepool.train.torch_model import PINNED, Qwen3, Shape, rotary_table, rotate

SMALL = Shape(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
RECIPE = pretrain.Recipe(
    shape=SMALL, stages=(Stage(64, 4, 6, {"sums": 1}), Stage(96, 2, 6, {"facts": 1, "echo": 1})), warmup=2
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(bundled.path() / "tokenizer.json"))


@pytest.fixture
def out(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def render(**given: Any) -> str:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = json.loads((bundled.path() / "tokenizer_config.json").read_text())["chat_template"]
    return environment.from_string(template).render(**given)


def test_some_steps_reduce_the_loss(out: Path) -> None:
    recipe = dataclasses.replace(RECIPE, stages=(Stage(64, 4, 25, {"sums": 1}),), decay=0.1)
    pretrain.pretrain(recipe, out, every=5)
    lines = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 26, 5))
    assert lines[-1]["tokens"] == 64 * 4 * 25
    assert lines[-1]["loss"] < lines[0]["loss"] - 1


def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(out: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("unbroken")
    (other / "tokenizer.json").write_bytes((out / "tokenizer.json").read_bytes())
    whole = pretrain.pretrain(RECIPE, other)
    pretrain.pretrain(RECIPE, out, steps=5)
    parts = pretrain.pretrain(RECIPE, out, resume=True)
    assert parts.step == whole.step == 12
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name


def test_a_batch_with_nothing_to_learn_moves_nothing() -> None:
    model = Qwen3(SMALL)
    loss = pretrain.masked_loss(model, torch.arange(12).view(2, 6), torch.zeros(2, 6, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_curve_leaves_out_what_has_no_loss() -> None:
    lines = [{"tokens": 1e6 * i, "length": 64 * i, "loss": loss} for i, loss in ((1, 2.0), (2, math.nan), (3, 0.5))]
    picture = curve.svg(lines)
    assert "nan" not in picture
    assert picture.count("<polyline") == 2


def test_resuming_nothing_says_so(out: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        pretrain.Run(RECIPE, out, resume=True)


def test_the_rate_warms_up_holds_and_falls() -> None:
    recipe = pretrain.Recipe(stages=(Stage(64, 1, 1000, {"sums": 1}),), warmup=100, decay=0.3, learning_rate=1.0)
    assert recipe.rate(0) == 0.01
    assert recipe.rate(500) == 1.0
    assert recipe.rate(999) == pytest.approx(0.05, abs=0.01)
    with pytest.raises(IndexError):
        recipe.stage(1000)


def test_orthogonal_updates_have_singular_values_near_one() -> None:
    matrix = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert 0.5 < values.min() < values.max() < 1.4


def test_the_first_layer_starts_out_looking_back() -> None:
    shape = Shape()
    model = Qwen3(shape)
    attention = model.model.layers[0].self_attn
    ids = torch.randint(9, 1024, (1, 30), generator=torch.Generator().manual_seed(0))
    x = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
    heads, rotary = (1, 30, -1, shape.head_dim), rotary_table(30, shape.head_dim, shape.rope_theta)
    q = rotate(attention.q_norm(attention.q_proj(x).view(heads)).transpose(1, 2), rotary)
    k = rotate(attention.k_norm(attention.k_proj(x).view(heads)).transpose(1, 2), rotary).repeat_interleave(2, 1)
    scores = (q @ k.mT / shape.head_dim**0.5).masked_fill(torch.ones(30, 30).triu(1).bool(), -torch.inf).softmax(-1)
    for head in range(4):
        assert scores[0, head].diagonal(-head - 1).mean() > 0.8


def test_training_leaves_the_pinned_number_alone(out: Path) -> None:
    run = pretrain.pretrain(RECIPE, out, steps=3)
    embedding = run.model.model.embed_tokens.weight
    assert (embedding[:, 0] == PINNED).all()
    assert embedding[:, 1].std() > 0


def test_transformers_computes_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    model = Qwen3(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1).copy_(parameter.bfloat16())
    export(model, tokenizer, tmp_path)
    other = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 1024, (2, 50), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(other(ids).logits, model(ids), atol=1e-4)


def test_the_future_does_not_change_the_past() -> None:
    model = Qwen3(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(20)[None]
    assert torch.allclose(model(ids)[:, :10], model(ids[:, :10]), atol=1e-6)


def test_int8_stays_near_fp32() -> None:
    model = Qwen3(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    exact = model(torch.arange(20)[None])
    error = (evaluate.Int8Qwen3.of(model)(torch.arange(20)[None]) - exact).norm() / exact.norm()
    assert 0 < error < 0.05


def test_export_is_a_qwen3_checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = Qwen3(SMALL)
    export(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        assert weights.get_tensor("model.norm.weight").dtype == torch.bfloat16
    assert shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["model.embed_tokens.weight"] == (1024, 64)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (32, 64)
    assert "lm_head.weight" not in shapes


@settings(max_examples=50)
@given(text=st.text())
def test_the_tokenizer_returns_any_text(tokenizer: Tokenizer, text: str) -> None:
    for tag in SPECIAL + TAGS:
        text = text.replace(tag, "")
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_and_tags_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("47 123").tokens == ["4", "7", "Ġ", "1", "2", "3"]
    for index, tag in enumerate(SPECIAL + TAGS):
        assert tokenizer.encode(tag).ids == [index]
    assert tokenizer.decode(tokenizer.encode("<think>a</think><|im_end|>").ids) == "<think>a</think>"


@pytest.mark.parametrize("name", FAMILIES)
def test_training_text_is_what_the_template_renders(name: str) -> None:
    for seed in range(20):
        episode = FAMILIES[name].draw(Random(seed), 512, 1)
        text = "".join(part for part, _ in segments(episode))
        assert render(messages=list(episode.messages), tools=list(episode.tools) or None) == text


def test_template_forms() -> None:
    user = {"role": "user", "content": "Hi"}
    opened = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(messages=[user], add_generation_prompt=True) == opened
    assert (
        render(messages=[user], add_generation_prompt=True, enable_thinking=False) == opened + "<think>\n\n</think>\n\n"
    )
    parts = {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}
    assert render(messages=[parts], add_generation_prompt=True) == opened
    call = {"function": {"name": "f", "arguments": {"a": "b"}}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    told = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    text = render(messages=[user, said, *told], tools=None)
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call><|im_end|>\n' in text
    )
    assert text.endswith("user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n")


def test_thoughts_of_earlier_turns_are_forgotten() -> None:
    user = {"role": "user", "content": "Hi"}
    thought = {"role": "assistant", "content": "<think>\nwork\n</think>\n\n8"}
    assert "work" not in render(messages=[user, thought, user], add_generation_prompt=True)
    assert "<think>\nwork\n</think>\n\n8" in render(messages=[user, thought])


def test_only_the_assistants_words_are_learned(tokenizer: Tokenizer) -> None:
    corpus = Corpus(tokenizer)
    episode = FAMILIES["calls"].draw(Random(0), 512, 1)
    ids, learn = corpus.encode(segments(episode))
    learned = tokenizer.decode([i for i, kept in zip(ids, learn, strict=True) if kept], skip_special_tokens=False)
    turns = [m["content"] for m in episode.messages if m["role"] == "assistant"]
    assert learned == "".join(turn + "<|im_end|>" for turn in turns)
    forgotten = segments(episode, forgotten=len(turns))
    assert not any(kept for _, kept in forgotten)


@pytest.mark.parametrize("kind", ["copy", "copy_words", "gapped", "restate", *FAMILIES])
def test_sequences_fill_their_length_and_depend_on_seed_and_step_only(tokenizer: Tokenizer, kind: str) -> None:
    corpus = Corpus(tokenizer)
    stage = Stage(300, 2, 1, {kind: 1})
    rows, masks = corpus.batch(0, 7, stage)
    assert (rows, masks) == corpus.batch(0, 7, stage)
    assert rows != corpus.batch(0, 8, stage)[0]
    assert [len(row) for row in rows + masks] == [300] * 4
    assert any(any(mask) for mask in masks)


def test_the_bundled_model_answers(tokenizer: Tokenizer) -> None:
    shape = json.loads((bundled.path() / "config.json").read_text())
    model = Qwen3(Shape(**{f.name: shape[f.name] for f in dataclasses.fields(Shape)}))
    weights = load_file(bundled.path() / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    corpus = Corpus(tokenizer)
    for judged in (model, evaluate.Int8Qwen3.of(model)):
        for family, size in (("facts", 512), ("chains", 256), ("sums", 150), ("calls", 512)):
            accuracy, _, _ = evaluate.score(judged, corpus, family, size, count=10)
            assert accuracy >= 0.8, (family, size)
        assert evaluate.score(judged, corpus, "facts", 1000, count=5)[0] == 1.0


def test_an_unknown_bundled_model_names_the_known() -> None:
    with pytest.raises(FileNotFoundError, match="there is probe, tiny"):
        bundled.path("huge")
