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

SMALL = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
# A layer as in Qwen2.5-0.5B: its widths, grouped queries, biases on what attention reads, and a tied head.
QWEN = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 2, "num_attention_heads": 14,
    "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e6,
}  # fmt: skip


@pytest.fixture(scope="module", params=[("Llama", SMALL), ("Qwen2", QWEN)], ids=["llama", "qwen2"])
def checkpoint(request, tmp_path_factory):
    """A published model's form with random weights, saved by transformers, that speaks the bundled model's tokens."""
    transformers = pytest.importorskip("transformers")
    family, sizes = request.param
    folder = tmp_path_factory.mktemp(family)
    known = json.loads((bundled.path() / "config.json").read_text())
    taken = {name: known[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    config = getattr(transformers, f"{family}Config")(**sizes, **taken, max_position_embeddings=1024)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):  # transformers begins them as zero, and then nobody would miss them
                torch.nn.init.normal_(tensor, std=0.1)
        model.save_pretrained(folder)
    for path in bundled.path().glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return folder


def engine_says(folder, tokens):
    engine = Engine(EngineConfig(model=str(folder), quant="fp32", kv_bytes=8 << 20, threads=1))
    return torch.tensor(engine.score(tokens), dtype=torch.float32)[-len(tokens) + 1 :]


def theirs_say(model, tokens):
    with torch.no_grad():
        logs = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    return logs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_additions_to_a_published_model_are_learned_played_and_exported(checkpoint, tmp_path):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    path = tmp_path / "run.yaml"
    settings = {
        "model": str(checkpoint), "lora_rank": 4, "task": "column-addition", "settings": {"low": 1, "high": 1},
        "threads": 1, "imitation": 3, "imitation_batch": 4, "demonstrations": 4, "imitation_rate": 1e-2, "steps": 1,
        "prompts": 2, "members": 3, "turn_tokens": 12, "turns": 1, "eval_problems": 0, "kv_bytes": "8MiB",
        "tensorboard": False, "isolation": "process", "out": str(tmp_path / "out"), "max_gap": 1e-4,
    }  # fmt: skip
    path.write_text(json.dumps(settings))
    run = Run(config.read(path))
    report = Report(run.out, False, None, {}, out=io.StringIO())
    tokens = list(range(20, 60))
    try:
        run.go(report)
        run._publish()  # as before a next step
        played = torch.tensor(run.hosts.engines[0].score(tokens), dtype=torch.float32)[-len(tokens) + 1 :]
    finally:
        report.close()
        run.close()
    lines = [json.loads(line) for line in (tmp_path / "out" / "curve.jsonl").read_text().splitlines()]
    assert lines[2]["loss"] < lines[0]["loss"], "the additions learn"
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "out" / "model"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed == {name for name in before if name.split(".")[-2] in TARGETS and name.endswith(".weight")}
    whole, apart = tmp_path / "out" / "model", tmp_path / "out" / "adapter"
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    untouched = theirs_say(base, tokens)
    summed = theirs_say(transformers.AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32), tokens)
    unmerged = theirs_say(peft.PeftModel.from_pretrained(base, apart), tokens)
    assert (summed - untouched).abs().max() > 1e-3, "the additions matter"
    assert torch.allclose(unmerged, summed, atol=1e-4)
    ours = engine_says(whole, tokens)
    assert torch.allclose(ours, summed, atol=1e-4)
    assert torch.equal(played, ours), "what is written is what the run's own engine was given"
