"""Somebody else's checkpoint through a whole run: low-rank additions, an export that transformers reads again."""

import io
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from statepool import bundled
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.train import config
from statepool.train.lora import TARGETS
from statepool.train.report import Report
from statepool.train.run import Run


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama of random weights, with grouped queries and a head of its own, that speaks the bundled model's tokens."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llama")
    known = json.loads((bundled.path() / "config.json").read_text())
    sizes = transformers.LlamaConfig(
        vocab_size=known["vocab_size"], hidden_size=64, intermediate_size=176, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
        bos_token_id=known["bos_token_id"], eos_token_id=known["eos_token_id"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformers.LlamaForCausalLM(sizes).save_pretrained(folder)
    for path in bundled.path().glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return folder


def test_additions_to_a_llama_are_learned_played_and_exported(llama, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    path = tmp_path / "run.yaml"
    settings = {
        "model": str(llama), "lora_rank": 4, "task": "column-addition", "settings": {"low": 1, "high": 1}, "threads": 1,
        "imitation": 3, "imitation_batch": 4, "demonstrations": 4, "imitation_rate": 1e-2, "steps": 1, "prompts": 2,
        "members": 3, "turn_tokens": 12, "turns": 1, "eval_problems": 0, "kv_bytes": "8MiB", "tensorboard": False,
        "isolation": "process", "out": str(tmp_path / "out"), "max_gap": 1e-4,
    }  # fmt: skip
    path.write_text(json.dumps(settings))
    run = Run(config.read(path))
    report = Report(run.out, False, None, {}, out=io.StringIO())
    try:
        run.go(report)
    finally:
        report.close()
        run.close()
    lines = [json.loads(line) for line in (tmp_path / "out" / "curve.jsonl").read_text().splitlines()]
    assert lines[2]["loss"] < lines[0]["loss"], "the additions learn"
    before, after = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "out" / "model"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed == {name for name in before if name.split(".")[-2] in TARGETS}
    tokens = list(range(20, 60))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    with torch.no_grad():
        theirs = again(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    ours = Engine(EngineConfig(model=str(tmp_path / "out" / "model"), quant="fp32", kv_bytes=8 << 20, threads=1))
    said = torch.tensor(ours.score(tokens), dtype=torch.float32)
    wanted = theirs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    assert torch.allclose(said[-len(wanted) :], wanted, atol=1e-4)
