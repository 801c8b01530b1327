"""Small random checkpoints with a byte-level tokenizer, written the way a user's would be."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "eos_token_id": 257,
}


def write_checkpoint(path, seed=0, scale=0.08, **changes):
    """Write config, random bf16 weights and tokenizer to ``path``; returns it."""
    from safetensors.numpy import save_file

    from statepool.engine.models import parse_config

    config = {**SHAPE, **changes}
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in parse_config(config).tensors():
        value = rng.standard_normal(shape, np.float32)
        tensors[name] = 1 + 0.1 * value if "norm" in name else scale * value
    save_file(tensors, path / "model.safetensors")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Directory of a random Qwen3-shaped model."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture
def make_checkpoint(tmp_path):
    """A function that writes one more checkpoint, with changed config fields."""

    def make(name="model", **changes):
        return write_checkpoint(tmp_path / name, **changes)

    return make


@pytest.fixture
def make_engine(checkpoint):
    """A function that builds an engine over the random model; keyword arguments go to EngineConfig."""
    from statepool.engine.config import EngineConfig
    from statepool.engine.engine import Engine

    def make(model=None, blocks=64, **settings):
        probe = {"kv_bytes": blocks * 2 * 2 * 2 * 16 * 32 * (4 if settings.get("quant") == "fp32" else 2)}
        return Engine(EngineConfig(model=str(model or checkpoint), **{"threads": 1, **probe, **settings}))

    return make
