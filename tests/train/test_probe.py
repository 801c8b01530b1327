"""The retrieval model: what it is asked, how it is trained, and what the judge makes of its answers."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch

from statepool import bundled
from statepool.cli import main
from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.train.probe.judge import engine_of, questions, score
from statepool.train.probe.questions import ASK, FILLERS, KEYS, KINDS, VALUES, copies
from statepool.train.probe.recipe import Recipe, Stage, draw, loss_of, train
from statepool.train.torch_model import Qwen3

SMALL = (Stage(64, 2, 0, 3, 0.0), Stage(96, 2, 9, 3, 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_stands_in_the_text(kind):
    for seed in range(20):
        question = KINDS[kind](Random(seed), 256, 30, 4)
        body = list(zip(question.tokens[: question.body], question.tokens[1 : question.body], strict=False))
        assert 250 <= len(question.tokens) <= 256
        for answer in question.answers:
            assert question.tokens[answer[0] - 2] == ASK
            for at in answer:
                key, said = question.tokens[at - 1 : at + 1]
                found = [b for a, b in body if a == key and b not in FILLERS]
                assert key in KEYS
                assert said in (*KEYS, *VALUES)
                # A link that is a value too may have the next pair right behind it.
                assert said in found if kind == "chains" else found == [said]


def test_copies_come_again_as_they_were():
    question = copies(Random(3), 200)
    tokens, (answer,) = question.tokens, question.answers
    assert len(tokens) == 200
    for at in answer:
        assert any(tokens[i : i + 2] == tokens[at - 1 : at + 1] for i in range(at - 1))


@pytest.mark.parametrize("attention", ["full", "moba:block=16,topk=2,last=1"])
def test_a_run_is_a_function_of_its_recipe(attention):
    runs = []
    for _ in range(2):
        recipe = Recipe(stages=SMALL, attention=attention, full=0.5)
        model = Qwen3(recipe.shape, recipe.seed)
        steps = list(train(recipe, model))
        runs.append((steps, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert [step.length for step in runs[0][0]] == [64] * 3 + [96] * 3
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1].values(), runs[1][1].values(), strict=True))


def test_blocks_come_first_and_full_attention_last():
    recipe = Recipe(
        stages=(Stage(64, 1, 0, 9, 0.0), Stage(64, 1, 0, 1, 0.0)), attention="moba:block=16,topk=1", full=0.1
    )
    kinds = [recipe.attention_at(0, step).sparse is None for step in range(9)] + [
        recipe.attention_at(1, 0).sparse is None
    ]
    assert kinds == [False] * 9 + [True]
    for wrong, message in (({"attention": "wave"}, "cannot be trained"), ({"full": 2.0}, "between 0 and 1")):
        with pytest.raises(InvalidConfig, match=message):
            Recipe(**wrong)


def test_blocks_that_hold_a_whole_text_give_the_loss_of_full_attention():
    asked = [draw(Random(i), SMALL[1]) for i in range(2)]
    model = Qwen3(Recipe().shape, 1)
    full = loss_of(model, asked, Recipe().spec)
    whole = loss_of(model, asked, Recipe(attention="moba:block=128,topk=1").spec)
    torch.testing.assert_close(whole, full, atol=1e-5, rtol=1e-5)


def test_training_through_blocks_that_hold_a_text_follows_full_attention():
    """Six steps of the optimizer on gradients of either kind: the same texts, the same losses."""
    losses = []
    for attention in ("full", "moba:block=128,topk=1"):
        recipe = Recipe(stages=SMALL, attention=attention, full=0.0)
        losses.append(torch.tensor([step.loss for step in train(recipe, Qwen3(recipe.shape, recipe.seed))]))
    assert len(losses[0]) == 6
    torch.testing.assert_close(losses[1], losses[0], atol=1e-3, rtol=0)


def test_the_bundled_probe_finds_every_needle_and_the_wave_index_most():
    asked = questions("probe", 2, 1400)
    scores = {name: score(name, engine_of("probe", name, 0.018), asked) for name in ("full", "oracle", "random")}
    fine = score("wave", engine_of("probe", "wave:tokens_per_cluster=4", 0.018), asked)
    assert scores["full"].share == scores["oracle"].share == 1
    assert fine.share > 0.9
    assert scores["random"].share < 0.5


def test_its_words_are_its_token_ids():
    tokenizer = Engine(EngineConfig(model="probe", kv_bytes=1 << 22)).tokenizer
    assert tokenizer.encode(" f0 k2 v3 ?") == [FILLERS[0], KEYS[2], VALUES[3], ASK]
    assert tokenizer.decode([KEYS[2], VALUES[3]]) == " k2 v3"
    assert sum(file.stat().st_size for file in bundled.path("probe").iterdir()) < 2 << 20


def test_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("statepool.train.probe.recipe.STAGES", SMALL)
    assert main(["probe", "train", "--out", str(tmp_path), "--longest", "64"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    capsys.readouterr()
    judged = ["probe", "eval", str(tmp_path), "--count", "1", "--length", "128", "--attention", "full", "--json"]
    assert main(judged) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["attention"], found["answers"]) == ("full", 8)
    assert main(["probe", "eval", "--count", "0"]) == 2
    assert "--count must be at least 1" in capsys.readouterr().err
    assert main(["probe", "eval", "--length", "9"]) == 2
    assert "length must be at least 128" in capsys.readouterr().err
