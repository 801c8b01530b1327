"""Whole samples one behind another, with the engine's block attention in training: MoBA with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from statepool.engine.attention.moba.config import MobaConfig
from statepool.engine.attention.spec import AttentionSpec
from statepool.train.moba import moba_attention
from statepool.train.prefix_tree import Sample
from statepool.train.torch_model import Attention, Layer, Qwen3, rotary_table


def block_states(
    model: Qwen3, samples: Sequence[Sample], spec: AttentionSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, int]]:
    """Hidden states that predict the learned tokens.

    Args:
        model: computes every token once; samples share nothing.
        samples: documents that do not see each other.
        spec: block attention, and how many first and last layers stay full, as the engine reads it.

    Returns:
        States ``[learned, hidden]``, their targets, each one's sample and place behind the prompt, and the
        shape of both.
    """
    lengths = [len(sample.tokens) - 1 for sample in samples]
    borders = [0, *accumulate(lengths)]
    ids = torch.tensor([token for sample in samples for token in sample.tokens[:-1]])
    places = torch.cat([torch.arange(length) for length in lengths])
    shape = model.shape
    x = model.model.embed_tokens(ids)
    cos, sin = (table.to(x.dtype)[places] for table in rotary_table(max(lengths), shape.head_dim, shape.rope_theta))
    cut = torch.tensor(borders)
    assert isinstance(spec.sparse, MobaConfig)
    whole = MobaConfig(block=max(lengths), topk=1)
    for number, layer in enumerate(model.model.layers):
        sparse = spec.first <= number < shape.num_hidden_layers - spec.last
        x = _layer(layer, x, (cos, sin), cut, spec.sparse if sparse else whole)  # type: ignore[arg-type]
    x = model.model.norm(x)
    found = [
        (borders[row] + at - 1, sample.tokens[at], row, at - sample.prompt)
        for row, sample in enumerate(samples)
        for at in range(sample.prompt, len(sample.tokens))
        if sample.learn[at]
    ]
    places, targets, rows, columns = torch.tensor(found, dtype=torch.int64).reshape(-1, 4).T
    longest = max(len(sample.tokens) - sample.prompt for sample in samples)
    return x[places], targets, rows, columns, (len(samples), longest)


def _layer(layer: Layer, x: Tensor, rotary: tuple[Tensor, Tensor], borders: Tensor, config: MobaConfig) -> Tensor:
    attention: Attention = layer.self_attn
    q, k, v = (part[0].transpose(0, 1) for part in attention.project(layer.input_layernorm(x)[None], rotary))
    mixed = moba_attention(q, k, v, borders, config.block, config.topk)
    x = x + attention.o_proj(mixed.flatten(1))
    out: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
    return out
