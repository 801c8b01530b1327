"""Small models, written the way a user's would be: random weights, a tokenizer of bytes, a chat template."""

import json
from pathlib import Path

import numpy as np
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
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(*control: str) -> Tokenizer:
    """One token per byte, then one per control token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text) for text in control])
    return tokenizer


def write_tokenizer(path: Path, *more: str, template: str | None = None) -> Path:
    """The files of a byte tokenizer with the control tokens of ChatML, whose end of turn has id 257."""
    path.mkdir(parents=True, exist_ok=True)
    byte_tokenizer("<|im_start|>", "<|im_end|>", *more).save(str(path / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>"} | ({"chat_template": template} if template else {})
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def write_model(path: Path, seed: int = 0, scale: float = 0.08, template: str | None = None, **changes: object) -> Path:
    """A random Qwen3-shaped checkpoint with its tokenizer; ``changes`` are fields of config.json."""
    from safetensors.numpy import save_file

    from statepool.engine.models import parse_config

    config = {**SHAPE, **changes}
    write_tokenizer(path, template=template)
    (path / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in parse_config(config).tensors():
        value = rng.standard_normal(shape, np.float32)
        tensors[name] = 1 + 0.1 * value if "norm" in name else scale * value
    save_file(tensors, path / "model.safetensors")
    return path
