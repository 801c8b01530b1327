"""Every way to score gives the numbers of every other, and what is published is what is learned."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from statepool import bundled
from statepool.core.errors import InvalidCheckpoint, InvalidConfig, NotFound
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.train import lora, policy
from statepool.train.prefix_tree import Sample, hidden, plant
from statepool.train.weights import KEPT, Publisher, current, take_up


def drawn(count=5, prompt=20, length=12):
    generator = torch.Generator().manual_seed(4)
    draw = lambda n: torch.randint(9, 1024, (n,), generator=generator).tolist()  # noqa: E731
    first = draw(prompt)
    return [
        Sample(
            [*first, *draw(i % 2), *draw(length)],
            [False] * (prompt + i % 2) + [True, False] * (length // 2),
            prompt + i % 2,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def own():
    return policy.load(bundled.path())


def test_transformers_scores_the_same(own):
    pytest.importorskip("transformers")
    other = policy.HubPolicy(bundled.path())
    samples = drawn()
    mine, theirs = own.score(samples, 0.7), other.score(samples, 0.7)
    assert torch.equal(mine.mask, theirs.mask)
    assert torch.allclose(mine.logprobs, theirs.logprobs, atol=2e-4)
    assert torch.allclose(mine.entropy, theirs.entropy, atol=2e-3)
    assert {n for n, _ in own.tensors()} == {n for n, _ in other.tensors()}


def test_the_trainer_says_what_the_engine_says_and_both_are_near_float64(engine, tmp_path):
    """Text the model never saw, with sharp attention, behind prompts that share pages or parts of one."""
    mine = policy.load(bundled.path())
    with torch.no_grad():
        for layer in mine.module.model.layers:
            layer.self_attn.q_norm.weight *= 1.3
    publisher = Publisher(tmp_path / "weights")
    publisher.publish(mine.tensors(), "sharp")
    take_up(engine, publisher.folder)
    samples = [s for size in (5, 16, 47, 80) for s in drawn(4, prompt=size, length=2 * size)]
    wide = copy.deepcopy(mine)
    wide.module.double()
    scored, exact = mine.score(samples), wide.score(samples)
    with torch.no_grad():
        assert torch.equal(mine.score(samples).logprobs, scored.logprobs)
        plain = scatter_plain(mine, samples)
    kept = scored.mask > 0
    said = torch.zeros_like(scored.logprobs)
    for row, sample in enumerate(samples):
        values = torch.from_numpy(engine.score(sample.tokens))[sample.prompt - 1 :]
        said[row, : len(values)] = values
    off = {
        name: (values.double() - exact.logprobs).detach()[kept].abs()
        for name, values in {"trainer": scored.logprobs, "engine": said, "torch": plain}.items()
    }
    assert (scored.logprobs - said).detach()[kept].abs().max() <= 1e-5
    assert off["trainer"].mean() <= off["torch"].mean()  # so the engine's sums are the ones to take
    assert off["trainer"].max() <= 2e-3
    for way in (scored, exact):
        (way.logprobs * way.mask).sum().backward()
    for one, other in zip(mine.module.parameters(), wide.module.parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 1e-3 * other.grad.norm()


def scatter_plain(mine, samples):
    """Log-probabilities by torch's float32 alone."""
    tree = plant(samples)
    logits = mine.module.logits(hidden(mine.module, tree)[tree.predictors])
    return policy.scatter(logits, tree.targets, tree.rows, tree.columns, tree.shape, 1.0).logprobs


def test_block_attention_with_one_block_is_full_attention(own):
    blocks = policy.load(bundled.path(), "moba:block=64,topk=1")
    samples = drawn()
    grads = []
    for way in (own, blocks):
        way.module.zero_grad()
        way.score(samples).logprobs.sum().backward()
        grads.append(way.module.model.embed_tokens.weight.grad.clone())
    assert torch.allclose(own.score(samples).logprobs, blocks.score(samples).logprobs, atol=1e-4)
    assert (grads[0] - grads[1]).norm() <= 1e-4 * grads[0].norm()


@pytest.mark.parametrize("attention", ["moba:block=16,topk=2", "moba:block=16,topk=2,first=1,last=1"])
def test_the_engine_with_block_attention_says_what_the_trainer_says(attention):
    engine = Engine(EngineConfig(quant="fp32", kv_bytes=16 << 20, threads=1, attention=attention))
    samples = drawn(2, prompt=70, length=40)
    with torch.no_grad():
        scored = policy.load(bundled.path(), attention).score(samples)
    for row, sample in enumerate(samples):
        said = torch.tensor(engine.score(sample.tokens)[sample.prompt - 1 :])
        kept = scored.mask[row, : len(said)] > 0
        assert (scored.logprobs[row, : len(said)] - said)[kept].abs().max() < 1e-3


def test_what_cannot_be_trained_is_named(tmp_path):
    with pytest.raises(InvalidConfig, match="wave"):
        policy.load(bundled.path(), "wave")
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        policy.load(tmp_path)
    (tmp_path / "config.json").write_text((bundled.path() / "config.json").read_text())
    with pytest.raises(InvalidCheckpoint, match=r"no \.safetensors"):
        policy.load(tmp_path)


def test_additions_begin_as_nothing_learn_and_are_summed(own, tmp_path):
    pytest.importorskip("peft")
    added = lora.Merged(policy.load(bundled.path()), rank=4, seed=0)
    samples = drawn()
    assert torch.allclose(added.score(samples).logprobs, own.score(samples).logprobs, atol=1e-5)
    learned = [p for p in added.module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learned) < 0.15 * sum(p.numel() for p in own.module.parameters())
    step = torch.optim.SGD(learned, lr=0.05)
    for _ in range(2):
        (-added.score(samples).logprobs.mean()).backward()
        step.step()
        step.zero_grad()
    after = added.score(samples).logprobs
    assert (after - own.score(samples).logprobs).abs().max() > 1e-3
    assert [n for n, _ in added.tensors()] == [n for n, _ in own.tensors()]
    added.export(tmp_path)
    assert torch.allclose(policy.load(tmp_path).score(samples).logprobs, after, atol=1e-4)


def test_an_export_loads_in_transformers_and_in_the_engine(own, tmp_path):
    transformers = pytest.importorskip("transformers")
    own.export(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float32"
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(other.model.norm.weight, own.module.model.norm.weight)
    assert Engine(EngineConfig(model=str(tmp_path), kv_bytes=8 << 20, threads=1)).info.vocab_size == 1024


def test_versions_come_whole_and_only_the_newest_stay(engine, own, tmp_path):
    publisher = Publisher(tmp_path / "weights")
    with pytest.raises(NotFound, match="no weights were published"):
        take_up(engine, publisher.folder)
    tokens = drawn(1)[0].tokens
    before = engine.score(tokens).tolist()
    for version in range(1, KEPT + 2):
        changed = [(name, value + version * (name == "model.norm.weight")) for name, value in own.tensors()]
        publisher.publish(changed, f"v{version}")
        assert current(publisher.folder) == f"v{version}"
        assert take_up(engine, publisher.folder) == f"v{version}" == engine.version
        assert engine.score(tokens).tolist() != before
    assert sorted(path.stem for path in publisher.folder.glob("*.safetensors")) == ["v2", "v3"]
    assert load_file(publisher.folder / "v3.safetensors").keys() == dict(own.tensors()).keys()
    with pytest.raises(NotFound, match="version v1"):
        take_up(engine, publisher.folder, "v1")
    publisher.publish(own.tensors(), "again")
    take_up(engine, publisher.folder)
    assert engine.score(tokens).tolist() == before
    publisher.close()
    assert not publisher.folder.exists()
