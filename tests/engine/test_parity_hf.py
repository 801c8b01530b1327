"""P1: fp32 logits equal those of transformers over families, shapes, rotary scalings and ways to get there."""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.checkpoint import write_tokenizer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams

TOLERANCE = 1e-5
GAP = 1e-4
OLD_CONTEXT = 32
"""Scaled rotary variants are stretched from here, well inside the lengths drawn."""

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
}


@st.composite
def models(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """Keyword arguments of a transformers config."""
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3, 7]))
    lanes = math.lcm(16, heads)
    shape = {
        "vocab_size": draw(st.sampled_from([272, 331])),
        # A multiple of the heads, as Llama's config demands even when head_dim is given, and of 16 lanes.
        "hidden_size": lanes * max(1, draw(st.integers(48, 160)) // lanes),
        "intermediate_size": draw(st.sampled_from([80, 128, 176])),
        "num_hidden_layers": draw(st.sampled_from([1, 2, 3])),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": heads,
        "head_dim": draw(st.sampled_from([16, 32, 64])),
        "max_position_embeddings": 256,
        "rms_norm_eps": draw(st.sampled_from([1e-5, 1e-6])),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": draw(st.sampled_from([0.02, 0.1])),
    }
    if family != "qwen2":
        shape["attention_bias"] = draw(st.booleans())
    if family == "llama":
        shape["mlp_bias"] = draw(st.booleans())
    return shape


@st.composite
def rotations(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """``rope_parameters`` of a transformers 5 config."""
    found = {"rope_type": kind, "rope_theta": draw(st.sampled_from([10_000.0, 500_000.0]))} | ROPES[kind]
    if kind in ("llama3", "yarn"):
        found["original_max_position_embeddings"] = OLD_CONTEXT
    if kind == "yarn":
        found |= draw(st.sampled_from([{}, {"attention_factor": 0.8}, {"beta_fast": 16.0, "beta_slow": 2.0}]))
    return found


@contextmanager
def saved(family: str, shape: dict[str, Any], rope: dict[str, Any], seed: int, old: bool) -> Iterator[tuple[Any, Path]]:
    """A random model of transformers and its checkpoint; ``old`` writes the config as transformers 4 did."""
    import torch
    import transformers

    config_class = getattr(transformers, f"{FAMILIES[family]}Config")
    model_class = getattr(transformers, f"{FAMILIES[family]}ForCausalLM")
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = model_class._from_config(config_class(**shape, rope_parameters=dict(rope)), attn_implementation="eager")
        model = model.to(torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:  # norms start as ones and biases as zeros: both would hide mistakes
                    parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
        path = Path(folder)
        model.save_pretrained(path, max_shard_size="200KB" if seed % 2 else "1GB")
        write_tokenizer(path, shape["vocab_size"])
        if old:
            _write_old_config(path / "config.json", rope)
        yield model, path


def _write_old_config(path: Path, rope: dict[str, Any]) -> None:
    config = json.loads(path.read_text())
    scaling = dict(config.pop("rope_parameters"))
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    path.write_text(json.dumps(config))


class Recorded:
    """An fp32 engine whose logits are kept as it makes them."""

    def __init__(self, path: Path, budget: int) -> None:
        self.engine = Engine(
            EngineConfig(
                model=str(path), quant="fp32", threads=1, max_seqs=1, max_batched_tokens=budget, kv_bytes=8 << 20
            )
        )
        self._rows: list[np.ndarray] = []
        inner = self.engine.runner.logits

        def logits(hidden: np.ndarray) -> np.ndarray:
            found = inner(hidden)
            self._rows.append(found.copy())
            return found

        self.engine.runner.logits = logits  # type: ignore[method-assign]

    def run(self, prompt: list[int], tokens: int, **params: Any) -> tuple[np.ndarray, list[int], int]:
        """Logits of the computed positions in order, the greedy tokens, and how many prompt tokens were cached."""
        self._rows.clear()
        greedy = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, **params)
        outputs = self.engine.generate([Request("r", tuple(prompt), greedy)])["r"]
        usage = outputs[-1].usage
        assert usage is not None
        return np.concatenate(self._rows), [t for output in outputs for t in output.tokens], usage.cached_tokens


def differs(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest relative L2 distance of a row; the choice must agree wherever it is clear."""
    assert ours.shape == theirs.shape
    best = np.sort(theirs, axis=-1)
    clear = best[:, -1] - best[:, -2] > GAP
    assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()
    return float((np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)).max())


def reference(model: Any, tokens: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, kind: str, record_property: Any) -> None:
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers")
    worst: list[float] = []

    @settings(
        max_examples=3,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data(), seed=st.integers(0, 1 << 16), old=st.booleans(), length=st.integers(17, 120))
    def check(data: st.DataObject, seed: int, old: bool, length: int) -> None:
        shape, rope = data.draw(models(family)), data.draw(rotations(kind))
        budget = data.draw(st.integers(1, 40))
        with saved(family, shape, rope, seed, old) as (model, path):
            prompt = np.random.default_rng(seed).integers(0, shape["vocab_size"], length).tolist()
            whole, chunked = Recorded(path, 256), Recorded(path, budget)
            expected = reference(model, prompt)
            prefill, _, _ = whole.run(prompt, 1, prompt_logprobs=0)
            pieces, _, _ = chunked.run(prompt, 1, prompt_logprobs=0)
            worst.extend([differs(prefill, expected), differs(pieces, expected)])
            assert np.array_equal(pieces, prefill)
            for engine in (whole, chunked):
                engine.engine.reset_prefix_cache()
                steps, made, cached = engine.run(prompt, 6)
                assert cached == 0
                expected = reference(model, prompt + made)[length - 1 : -1]
                worst.append(differs(steps, expected))
                again, made_again, cached = engine.run(prompt, 6)
                assert cached == (length - 1) // 16 * 16 or cached == length - 1
                assert made_again == made
                assert np.array_equal(again, steps)
                worst.append(differs(again, expected))
        assert max(worst) <= TOLERANCE

    check()
    record_property("rel_l2", max(worst))
    record_property("cases", len(worst))
