"""Write the probe model in the Hugging Face layout, with a tokenizer whose words are its token ids."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from statepool.train import export as layout
from statepool.train.probe.questions import ASK, FILLERS, KEYS, VALUES
from statepool.train.torch_model import Qwen3

_END = "<|endoftext|>"


def tokenizer() -> Tokenizer:
    """Words in the order of ids: the end, `` ?``, `` f0``…, `` k0``…, `` v0``…; each takes the space before it."""
    words = {_END: 0, "Ġ?": ASK}
    for letter, ids in zip("fkv", (FILLERS, KEYS, VALUES), strict=True):
        words |= {f"Ġ{letter}{number}": token for number, token in enumerate(ids)}
    made = Tokenizer(models.WordLevel(words, unk_token=_END))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" \S+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(_END, special=True, normalized=False)])
    return made


def export(model: Qwen3, folder: Path) -> None:
    """Write config, weights in bf16, tokenizer, and generation defaults to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    config = layout.config(model.shape, {_END: 0, "<|im_end|>": 0})
    defaults = {"bos_token_id": 0, "do_sample": False, "eos_token_id": [0], "pad_token_id": 0}
    for name, content in (("config.json", config), ("generation_config.json", defaults)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
