"""A sliced model at work: slices here, attentions wherever the KV is, and between two slices only what was cut.

Any decoder that ``capture`` can take apart runs on the attention workers of ``engine.attention.remote`` this way,
without a line about its architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import map_arg

from statepool.core.errors import InvalidRequest
from statepool.engine.attention.remote.link import Link
from statepool.engine.attention.remote.placement import Errand, place
from statepool.engine.attention.remote.protocol import Hello
from statepool.engine.batch import Batch
from statepool.engine.slicing.capture import Captured, capture
from statepool.engine.slicing.graph import Slicing, slice_graph
from statepool.kv import KVLayout
from statepool.kv.layout import BLOCK_SIZE
from statepool.native import kernels

__all__ = ["Attention", "RemoteAttention", "SlicedModel", "WholeAttention", "greedy"]


class Attention(Protocol):
    """Where queries, keys and values go and results come from. Layers count from 0."""

    def query(self, layer: int, query: Tensor, scale: float) -> None:
        """``[1, heads, T, head_dim]``; keys and values follow later."""
        ...

    def keys(self, layer: int, key: Tensor, value: Tensor) -> None:
        """``[1, kv_heads, T, head_dim]``."""
        ...

    def out(self, layer: int) -> Tensor:
        """``[1, heads, T, head_dim]``."""
        ...


class SlicedModel:
    """A decoder in slices.

    Args:
        model: made by ``capture.attentive``, or loaded with its attention.

    Raises:
        InvalidConfig: see ``capture``.
    """

    def __init__(self, model: Any) -> None:
        self.captured: Captured = capture(model)
        self.slicing: Slicing = slice_graph(self.captured.graph)
        self.config = model.config
        program = self.captured.program
        signature, held = program.graph_signature, {**program.state_dict, **program.constants}
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._weights: dict[str, Any] = {name: held[target] for name, target in names.items()}

    @torch.no_grad()
    def __call__(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Logits ``[1, T, vocab]`` of token ids and positions int64 ``[1, T]``."""
        graph, nodes = self.captured.graph, self.captured.nodes
        given = dict(zip(self.captured.program.graph_signature.user_inputs, (tokens, positions), strict=True))
        everywhere = dict(self._weights)
        for name, node in nodes.items():  # counts of tokens, which are no tensors and known on every side
            if name not in graph.ops and node.op == "call_function" and str(node.target).startswith("aten.sym_size"):
                everywhere[name] = given[node.args[0].name].shape[node.args[1]]
        values: dict[str, Any] = {}

        def run(names: Sequence[str]) -> None:
            for name in names:
                node = nodes[name]
                if node.op == "placeholder":
                    values[name] = given[name]
                elif node.op == "call_function":
                    read = map_arg(
                        (node.args, node.kwargs), lambda n: values[n.name] if n.name in values else lookup(n)
                    )
                    values[name] = node.target(*read[0], **read[1])

        def lookup(node: Any) -> Any:
            """A weight, or a number that follows from the number of tokens."""
            if node.name not in everywhere:
                read = map_arg((node.args, node.kwargs), lookup)
                everywhere[node.name] = node.target(*read[0], **read[1])
            return everywhere[node.name]

        for layer, (part, cut) in enumerate(zip(self.slicing.slices, self.slicing.cuts, strict=False)):
            node = nodes[cut.attention]
            query, key, value, scale = node.args
            run(part.query)
            attention.query(layer, values[query.name], scale)
            run(part.keys)
            attention.keys(layer, values[key.name], values[value.name])
            run(part.rest)
            values = {name: values[name] for name in cut.kept}
            values[cut.attention] = attention.out(layer)
        run(self.slicing.slices[-1].rest)
        output = next(node for node in nodes.values() if node.op == "output")
        logits: Tensor = values[output.args[0][0].name]
        return logits


class WholeAttention:
    """One sequence from its first token, the attention in this process: the operator of the whole model."""

    def query(self, layer: int, query: Tensor, scale: float) -> None:
        """See ``Attention``."""
        self._query, self._scale = query, scale

    def keys(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See ``Attention``."""
        self._out: Tensor = torch.ops.statepool.attend(self._query, key, value, self._scale)

    def out(self, layer: int) -> Tensor:
        """See ``Attention``."""
        return self._out


class RemoteAttention:
    """The KV of some sequences on attention workers. Call ``step`` before each pass of the model.

    Args:
        addresses: of the workers.
        layers, heads, kv_heads, head_dim: of the model.
        tokens: most tokens of all sequences together, each rounded up to a block.
        split: see ``placement``.

    Raises:
        InvalidRequest: head_dim is no multiple of 16. KVLost: a worker does not answer, now or later.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        tokens: int = 4096,
        split: str = "auto",
    ) -> None:
        if head_dim % 16:
            raise InvalidRequest(f"head_dim {head_dim} is not a multiple of 16", param="head_dim")
        layout, blocks = KVLayout(layers, kv_heads, head_dim, "fp32"), tokens // BLOCK_SIZE
        self._heads, self._width = heads, head_dim
        self._free = list(range(blocks))
        self._tables: list[list[int]] = []
        self._lengths: list[int] = []
        self._placement = place(split, len(addresses), layout, heads, blocks)
        self._links = []
        for number, (address, share) in enumerate(zip(addresses, self._placement.shares, strict=True)):
            hello = Hello(f"slices/{split}/{number}", layers, share.kv_heads, head_dim, "fp32", blocks, fresh=True)
            self._links.append(Link(address, hello, 10.0))
            self._links[-1].open(20.0)
        self._errands: list[Errand] = []

    def step(self, parts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Tokens that each sequence goes on with (a new one behind the known), as ids and positions for the model.

        Raises:
            InvalidRequest: there is no room for them.
        """
        entries = []
        for i, tokens in enumerate(parts):
            if i == len(self._tables):
                self._tables.append([])
                self._lengths.append(0)
            first, length = self._lengths[i], self._lengths[i] + len(tokens)
            while len(self._tables[i]) * BLOCK_SIZE < length:
                if not self._free:
                    raise InvalidRequest("the sequences are longer than the tokens there is room for", param="tokens")
                self._tables[i].append(self._free.pop())
            self._lengths[i] = length
            entries.append((tokens, first, self._tables[i]))
        self._batch = Batch.build(entries)
        for move in self._placement.moves(self._batch):
            self._links[move.target].write(move.blocks, self._links[move.source].read(move.blocks))
        self._errands = self._placement.errands(0, self._batch)
        for errand in self._errands:
            self._links[errand.worker].plan(errand.plan)
        ids, positions = (
            torch.from_numpy(a.astype(np.int64))[None] for a in (self._batch.tokens, self._batch.positions)
        )
        return ids, positions

    @property
    def last_rows(self) -> list[int]:
        """The row of each sequence's last token in this step."""
        rows: list[int] = (self._batch.query_start[1:] - 1).tolist()
        return rows

    def query(self, layer: int, query: Tensor, scale: float) -> None:
        """See ``Attention``."""
        usual = self._width**-0.5
        rows = _rows(query if scale == usual else query * (scale / usual))
        for errand in self._errands:
            self._links[errand.worker].query(0, layer, self._placement.query_of(errand, rows))

    def keys(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See ``Attention``."""
        kv = np.stack([_rows(key), _rows(value)], axis=1)
        for errand in self._errands:
            if len(errand.stored):
                self._links[errand.worker].keys(0, layer, self._placement.keys_of(errand, kv))

    def out(self, layer: int) -> Tensor:
        """See ``Attention``."""
        answers = [np.frombuffer(self._links[errand.worker].out(0, layer).body, np.float32) for errand in self._errands]
        mixed = np.empty((self._batch.tokens.size, self._heads * self._width), np.float32)
        self._placement.gather(self._errands, answers, kernels, mixed)
        return torch.from_numpy(mixed).view(1, -1, self._heads, self._width).transpose(1, 2)

    def close(self) -> None:
        """End the connections."""
        for link in self._links:
            link.close()


def greedy(
    model: SlicedModel, attention: RemoteAttention, prompts: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """``count`` most likely tokens behind each prompt."""
    parts: list[list[int]] = [list(prompt) for prompt in prompts]
    said: list[list[int]] = [[] for _ in prompts]
    for _ in range(count):
        logits = model(*attention.step(parts), attention)[0]
        parts = [[int(token)] for token in logits[attention.last_rows].argmax(-1)]
        for known, (token,) in zip(said, parts, strict=True):
            known.append(token)
    return said


def _rows(tensor: Tensor) -> Any:
    """``[1, heads, T, hd]`` as float32 rows ``[T, heads, hd]``, contiguous."""
    return np.ascontiguousarray(tensor[0].transpose(0, 1).float().numpy())
