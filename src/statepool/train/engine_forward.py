"""The engine's own kernels on a tree: the numbers that a conversation was sampled with, for the trainer to learn from.

float32 leaves a choice of order in every sum. Where attention is sharp, scores reach 35 and their last digits move
logits: two float32 implementations then differ by 1e-4 to 3e-4 in the log-probability of an unlikely token. In the
conversations of an agent torch's are three times as far from float64 as the engine's on average, most of it from its
attention. So the values are computed here, by the engine's layers, and `train/tree_gradient.py` says how they change.

Rows of a tree are requests of one step. A row's pages are those of the row above it up to its own first token; a page
that it does not begin is copied, for the engine's sums start afresh at each page of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from statepool.engine.rope import rope_tables
from statepool.kv.layout import BLOCK_SIZE
from statepool.native import kernels
from statepool.train.prefix_tree import Tree
from statepool.train.torch_model import Shape
from statepool.train.tree_gradient import Computed

F32 = npt.NDArray[np.float32]


class EngineForward:
    """A model in the engine's float32 arithmetic, for as long as its weights stay as they are.

    Args:
        shape: sizes of the model; heads are a multiple of 16 wide, as in every model the engine loads.
        weights: Hugging Face names, float32.
    """

    def __init__(self, shape: Shape, weights: Mapping[str, F32]) -> None:
        self._ops = _ops()
        self._shape = shape
        self._norm = weights["model.norm.weight"]
        self._embedding = weights["model.embed_tokens.weight"]
        self._head = self._ops.Linear(self._embedding, "fp32", None)
        self._layers = [self._layer(weights, f"model.layers.{i}") for i in range(shape.num_hidden_layers)]

    def run(self, tree: Tree) -> Computed:
        """The hidden states of all rows of all levels, and what attention made of them, layer by layer."""
        shape = self._shape
        pages = _Pages(tree)
        pool = np.zeros((pages.count, 1, 2, shape.num_key_value_heads, BLOCK_SIZE * shape.head_dim), np.float32)
        cos, sin = rope_tables(
            {"rope_type": "default", "rope_theta": shape.rope_theta}, shape.head_dim, int(pages.positions.max()) + 1
        )
        tokens = np.concatenate([level.ids.flatten().numpy() for level in tree.levels]).astype(np.int32)
        x = np.empty((tokens.size, shape.hidden_size), np.float32)
        self._ops.embed(self._embedding, tokens, x)
        query = np.empty((tokens.size, shape.num_attention_heads * shape.head_dim), np.float32)
        mixed = np.empty_like(query)
        heads = query.reshape(tokens.size, -1, shape.head_dim)
        done = Computed([torch.from_numpy(x.copy())], [])
        for layer in self._layers:
            layer.before_attention(x, cos, sin, pages.positions, pages.slots, pool, 0, query)
            pages.copy_begun(pool, shape.head_dim)
            self._ops.attention(
                heads, pool, 0, pages.tables, pages.query_start, pages.context_len, shape.head_dim**-0.5, mixed
            )
            layer.after_attention(x, mixed)
            done.states.append(torch.from_numpy(x.copy()))
            done.mixed.append(torch.from_numpy(mixed.copy()))
        return done

    def logits(self, states: F32) -> F32:
        """The logits ``[rows, vocab]`` of states ``[rows, hidden]`` behind the last layer."""
        out = np.empty((len(states), self._shape.vocab_size), np.float32)
        self._ops.head(states, self._norm, self._shape.rms_norm_eps, self._head, out)
        return out

    def _layer(self, weights: Mapping[str, F32], at: str) -> Any:
        def linear(*names: str) -> Any:
            return self._ops.Linear(
                np.concatenate([weights[f"{at}.{name}_proj.weight"] for name in names]), "fp32", None
            )

        return self._ops.DecoderLayer(
            qkv=linear("self_attn.q", "self_attn.k", "self_attn.v"),
            o=linear("self_attn.o"),
            gate_up=linear("mlp.gate", "mlp.up"),
            down=linear("mlp.down"),
            input_norm=weights[f"{at}.input_layernorm.weight"],
            post_norm=weights[f"{at}.post_attention_layernorm.weight"],
            q_norm=weights[f"{at}.self_attn.q_norm.weight"],
            k_norm=weights[f"{at}.self_attn.k_norm.weight"],
            eps=self._shape.rms_norm_eps,
            heads=self._shape.num_attention_heads,
            kv_heads=self._shape.num_key_value_heads,
            head_dim=self._shape.head_dim,
        )


class _Pages:
    """Where the keys and values of a tree's rows are, as the engine's kernels want to know it."""

    def __init__(self, tree: Tree) -> None:
        tables: list[list[int]] = []
        slots, positions, self._copies = [], [], list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]()
        first: list[int] = []
        self.count = 0
        for level in tree.levels:
            first.append(len(tables))
            width, begun = level.ids.shape[1], []
            for parent, start in zip(level.parents.tolist(), level.starts.tolist(), strict=True):
                above = tables[first[level.above] + parent] if level.above >= 0 else []
                whole, kept = divmod(start, BLOCK_SIZE)
                own = list(range(self.count, self.count + -(-(kept + width) // BLOCK_SIZE)))
                self.count += len(own)
                if kept:
                    begun.append((above[whole], own[0], kept))
                tables.append(above[:whole] + own)
                place = np.arange(kept, kept + width)
                slots.append(own[0] * BLOCK_SIZE + place)
                positions.append(whole * BLOCK_SIZE + place)
            if begun:
                source, target, tokens = np.array(begun).T
                self._copies.append((source, target, np.arange(BLOCK_SIZE) < tokens[:, None]))
        self.tables = np.zeros((len(tables), max(map(len, tables))), np.int32)
        for row, table in enumerate(tables):
            self.tables[row, : len(table)] = table
        self.slots = np.concatenate(slots).astype(np.int64)
        self.positions = np.concatenate(positions).astype(np.int32)
        lengths = [len(row) for row in positions]
        self.query_start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        self.context_len = np.array([row[-1] + 1 for row in positions], np.int32)

    def copy_begun(self, pool: F32, head_dim: int) -> None:
        """Give rows that begin within a page what the row above has in it."""
        rows, heads = len(pool), pool.shape[3]
        keys = pool[:, 0, 0].reshape(rows, heads, head_dim, BLOCK_SIZE)
        values = pool[:, 0, 1].reshape(rows, heads, BLOCK_SIZE, head_dim)
        for source, target, kept in self._copies:  # a level's copies come after those of the level above
            keys[target] = np.where(kept[:, None, None, :], keys[source], keys[target])
            values[target] = np.where(kept[:, None, :, None], values[source], values[target])


def _ops() -> Any:
    if kernels is not None:
        return kernels
    from statepool.engine import ops

    return ops
