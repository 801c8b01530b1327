"""A small trainable Qwen3: RMSNorm, rotary GQA with normed queries and keys, SwiGLU, tied head.

Parameter names are those of `Qwen3ForCausalLM`, so that `state_dict()` is a checkpoint any reader of that form loads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from statepool.engine.rope import rope_tables

PINNED = 0.5
"""The first number of every embedding."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048


class Attention(nn.Module):
    """Causal self-attention over grouped heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=shape.rms_norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=shape.rms_norm_eps)

    def project(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [batch, heads, time, head_dim] of [batch, time, hidden]."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), rotary)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), rotary)
        return q, k, self.v_proj(x).view(heads).transpose(1, 2)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Mix [batch, time, hidden] over time."""
        q, k, v = self.project(x, rotary)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position by itself."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention and MLP, each normed before and added after."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Return x with both parts added."""
        x = x + self.self_attn(self.input_layernorm(x), rotary)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Trunk(nn.Module):
    """Embedding, layers and the last norm (`model.` in checkpoint names)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)


class Qwen3(nn.Module):
    """The language model. The head is the embedding."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)  # tokens pass unblurred until attention has something to say
            elif parameter.ndim == 2:
                scale = 0.05 if "embed" in name else 0.6 * shape.hidden_size**-0.5
                nn.init.normal_(parameter, std=scale, generator=generator)
        attention: Attention = self.model.layers[0].self_attn  # type: ignore[assignment]
        look_back(attention, shape)
        nn.init.normal_(attention.o_proj.weight, std=0.01, generator=generator)
        self.pin()

    @torch.no_grad()
    def pin(self) -> None:
        """Set the first number of every embedding to one constant.

        Attention by position alone needs a part that all tokens share, as a bias would be. Training must not move it:
        frequent and rare tokens would drift apart along it. A constant adds the same to all logits of the tied head.
        """
        self.model.embed_tokens.weight[:, 0] = PINNED

    def hidden(self, ids: Tensor) -> Tensor:
        """Return the normed last hidden states [batch, time, hidden] of token ids [batch, time]."""
        x = self.model.embed_tokens(ids)
        rotary = rotary_table(ids.shape[1], self.shape.head_dim, self.shape.rope_theta)
        for layer in self.model.layers:
            x = layer(x, rotary)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states."""
        return functional.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits [batch, time, vocab] of token ids [batch, time]."""
        return self.logits(self.hidden(ids))


@torch.no_grad()
def look_back(attention: Attention, shape: Shape, pairs: int = 4) -> None:
    """Make head h of a layer start out looking h + 1 tokens back.

    Finding a stretch again needs the token before each token; from random weights these heads alone take a million
    tokens to form. Queries and keys answer to the pinned number, in the fastest `pairs` of the rotary embedding.
    """
    half = shape.head_dim // 2
    frequency = shape.rope_theta ** (-torch.arange(pairs, dtype=torch.float32) / half)
    for weight, angles in (
        (attention.q_proj.weight, [(head + 1) * frequency for head in range(shape.num_attention_heads)]),
        (attention.k_proj.weight, [0 * frequency for _ in range(shape.num_key_value_heads)]),
    ):
        weight.mul_(0.2)
        for head, angle in enumerate(angles):
            at = head * shape.head_dim
            weight[at : at + pairs, 0] += angle.cos()
            weight[at + half : at + half + pairs, 0] -= angle.sin()
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[:pairs] = norm.weight[half : half + pairs] = 2.0


def rotary_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin [length, head_dim] of the rotary angles, both halves alike: the engine's own numbers."""
    tables = rope_tables({"rope_type": "default", "rope_theta": theta}, head_dim, length)
    cos, sin = (torch.from_numpy(table).repeat(1, 2) for table in tables)
    return cos, sin


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn heads [..., time, head_dim] by their position's angles."""
    half = x.shape[-1] // 2
    return x * rotary[0] + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * rotary[1]
