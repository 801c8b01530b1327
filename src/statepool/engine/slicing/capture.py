"""A decoder of ``transformers`` as a graph of operators in which every attention is one node.

The model is exported on the meta device, without weights and memory. Its attention function is replaced, by the
interface transformers has for that, with an operator that hides what it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from statepool.core.errors import InvalidCheckpoint, InvalidConfig
from statepool.engine.slicing.graph import Kind, Op, OpGraph

__all__ = ["NAME", "Captured", "capture", "read_config"]

NAME = "statepool"
_EXAMPLE_TOKENS = 8


@torch.library.custom_op("statepool::attend", mutates_args=())
def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention of ``query [1, heads, T, hd]`` over ``key``, ``value`` ``[1, kv_heads, T, hd]``."""
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scale)


@attend.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query)


def _attention(
    _module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float | None = None, **more: Any
) -> tuple[Tensor, None]:
    """What a model of transformers calls for its attention."""
    for name in ("sliding_window", "softcap", "s_aux"):
        if more.get(name) is not None:
            raise InvalidConfig(f"the model's attention has {name}, which attention workers do not do", param="model")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    mixed: Tensor = torch.ops.statepool.attend(query, key, value, scale)
    return mixed.transpose(1, 2).contiguous(), None


@dataclass(frozen=True, slots=True)
class Captured:
    """A model as operators, and the nodes behind them."""

    graph: OpGraph
    nodes: dict[str, Any]
    program: Any
    """The ``torch.export.ExportedProgram``; inputs are token ids and positions int64 ``[1, T]``, any T."""


def read_config(path: str | Path) -> Any:
    """The ``transformers`` config in a folder.

    Raises:
        InvalidCheckpoint: it cannot be read, or transformers does not know the model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidCheckpoint(f"config.json of {str(path)!r} cannot be used: {error}", param="model") from None


def capture(model: Any) -> Captured:
    """The graph of a decoder, from its config (then without weights) or from a model that ``attentive`` made.

    Raises:
        InvalidConfig: its attention does something that attention workers do not, or cannot be replaced.
    """
    if not isinstance(model, torch.nn.Module):
        with torch.device("meta"):
            model = attentive(model)
    device = next(model.parameters()).device
    example = torch.zeros(1, _EXAMPLE_TOKENS, dtype=torch.long, device=device)
    tokens = torch.export.Dim("tokens", min=1, max=1 << 20)
    with torch.no_grad():
        program = torch.export.export(
            _Plain(model), (example, example.clone()), dynamic_shapes=({1: tokens}, {1: tokens}), strict=False
        )
    nodes = {node.name: node for node in program.graph.nodes}
    weights = set(program.graph_signature.inputs_to_parameters) | set(program.graph_signature.inputs_to_buffers)
    weights |= set(program.graph_signature.inputs_to_lifted_tensor_constants)
    ops = [_op(node, weights) for node in program.graph.nodes if not _free(node, weights)]
    graph = OpGraph.of(_alive(ops))
    if not graph.attentions:
        kind = getattr(model.config, "model_type", "this model")
        raise InvalidConfig(f"{kind} does not call transformers' attention interface", param="model")
    return Captured(graph, nodes, program)


def attentive(config: Any, **settings: Any) -> Any:
    """A model of this config whose attention is the one operator; random weights.

    Raises:
        InvalidConfig: transformers has no way to replace its attention.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    try:
        return AutoModelForCausalLM.from_config(config, attn_implementation=NAME, **settings).eval()
    except (KeyError, ValueError) as error:
        raise InvalidConfig(
            f"the attention of {config.model_type} cannot be replaced: {error}", param="model"
        ) from None


class _Plain(torch.nn.Module):
    """Token ids and positions in, logits out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[1, T, vocab]``."""
        logits: Tensor = self.model(input_ids=tokens, position_ids=positions, use_cache=False, return_dict=False)[0]
        return logits


def _no_mask(*_: Any, **__: Any) -> None:
    """The operator is causal by itself."""


def _free(node: Node, weights: set[str]) -> bool:
    """Whether a node is on every side anyway: weights, and numbers that follow from how many tokens there are."""
    return node.name in weights or isinstance(node.meta.get("val"), int | torch.SymInt) or not _tensors(node)


def _tensors(node: Node) -> list[Tensor]:
    value = node.meta.get("val")
    found = value if isinstance(value, list | tuple) else [value]
    return [each for each in found if isinstance(each, Tensor)] if node.op != "output" else [torch.empty(0)]


def _op(node: Node, weights: set[str]) -> Op:
    inputs = tuple(each.name for each in node.all_input_nodes if not _free(each, weights))
    target = str(node.target)
    kind: Kind = "op"
    if node.op in ("placeholder", "output"):
        kind = "input" if node.op == "placeholder" else "output"
    elif target.startswith("statepool.attend"):
        kind = "attention"
        inputs = tuple(each.name for each in node.args[:3] if isinstance(each, Node))
    # A token's share: what has no axis of tokens is as large for one as for many.
    nbytes = sum(math.prod(d for d in t.shape if isinstance(d, int)) * t.element_size() for t in _tensors(node))
    return Op(
        node.name, kind, inputs, 0 if kind == "output" else nbytes, target.split(".")[1] if "." in target else target
    )


def _alive(ops: list[Op]) -> list[Op]:
    """Those that something depends on: masks and the like are read by nobody any more."""
    wanted: set[str] = set()
    for op in reversed(ops):
        if op.kind == "output" or op.name in wanted:
            wanted |= {op.name, *op.inputs}
    return [op for op in ops if op.name in wanted]
