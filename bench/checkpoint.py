"""Random-init checkpoints in HF layout, written without any model library.

Three shapes: ``qwen3-0.6b`` (1.19 GB, larger than any cache) for every claim about speed, ``small`` for
overhead, serving and start-up, ``long`` for contexts whose keys and values weigh more than the model. The same
bytes on every machine: weights come from Philox keyed by the seed and the tensor's place in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CACHE = Path(__file__).resolve().parent.parent / ".bench"
"""Everything a benchmark writes and may write again: checkpoints, conversions, probes, results."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_INIT_STD = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen3 decoder with tied embeddings."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    vocab: int
    positions: int

    @property
    def block_parameters(self) -> int:
        """Parameters of all linear layers outside the embedding."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inter)

    @property
    def head_parameters(self) -> int:
        """Parameters of the embedding, read once per step as the output head."""
        return self.vocab * self.hidden

    def kv_bytes(self, tokens: int, itemsize: int = 2) -> int:
        """Bytes of keys and values of ``tokens`` positions."""
        return tokens * self.layers * 2 * self.kv_heads * self.head_dim * itemsize


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen3-0.6b", 28, 1024, 16, 8, 128, 3072, 151_936, 8192),
        Shape("small", 8, 512, 8, 4, 64, 1536, 8192, 4096),
        Shape("long", 2, 256, 4, 2, 64, 512, 8192, 132_096),
    )
}


def checkpoint(name: str, seed: int = 0) -> Path:
    """The folder of the checkpoint ``name``, written first if it is not there yet.

    Raises:
        KeyError: no shape has this name.
    """
    shape = SHAPES[name]
    folder = CACHE / "checkpoints" / f"{name}-{seed}"
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_configs(folder, shape)
        write_tokenizer(folder, shape.vocab)
        _write_weights(folder / "model.safetensors", shape, seed)
    return folder


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors in file order, as HF's Qwen3ForCausalLM names them."""
    s, q, kv = shape, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (s.vocab, s.hidden)
    for layer in range(s.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (s.hidden,)
        yield prefix + "self_attn.q_proj.weight", (q, s.hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, s.hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, s.hidden)
        yield prefix + "self_attn.o_proj.weight", (s.hidden, q)
        yield prefix + "self_attn.q_norm.weight", (s.head_dim,)
        yield prefix + "self_attn.k_norm.weight", (s.head_dim,)
        yield prefix + "post_attention_layernorm.weight", (s.hidden,)
        yield prefix + "mlp.gate_proj.weight", (s.inter, s.hidden)
        yield prefix + "mlp.up_proj.weight", (s.inter, s.hidden)
        yield prefix + "mlp.down_proj.weight", (s.hidden, s.inter)
    yield "model.norm.weight", (s.hidden,)


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to bfloat16 (nearest even), as raw 16-bit words."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_weights(path: Path, shape: Shape, seed: int) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dims in tensors(shape):
        size = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for place, (_, dims) in enumerate(tensors(shape)):
            if len(dims) == 1:
                values = np.ones(dims, np.float32)
            else:
                noise = np.random.Generator(np.random.Philox(key=np.array([seed, place], np.uint64)))
                values = noise.standard_normal(dims, np.float32)
                values *= np.float32(_INIT_STD)
            file.write(to_bf16(values).data)
    part.rename(path)


def _write_configs(folder: Path, shape: Shape) -> None:
    end = shape.vocab - len(SPECIAL)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inter,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    _dump(folder / "config.json", config)
    _dump(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": [end], "do_sample": False})


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A byte-level tokenizer that covers every id: 256 bytes, filler words, the special tokens last."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"w{number}" for number in range(vocab - len(words) - len(SPECIAL))]
    table = {word: number for number, word in enumerate(words)}
    table |= {word: len(words) + number for number, word in enumerate(SPECIAL)}
    tokenizer = Tokenizer(models.BPE(vocab=table, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _dump(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[0],
            "pad_token": SPECIAL[0],
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    )


def _dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
