"""The gradients of a tree of samples, written out: what torch would derive, a part of the tokens at a time.

Where the engine computed the values (``train/engine_forward.py``) nothing has to be run forward but what a derivative
asks for. By torch's own operations that was a second forward pass, and each element-wise step there and back a tensor
of all tokens that leaves the cache. Here a layer is taken back in three sweeps over parts of the tokens: the MLP and
the output projection, attention, and what comes before it.

    x ── norm ── qkv ── norm, rotate ── attention ─► mixed ── o ──(+ x)─► mid ── norm ── gate, up ── down ──(+ mid)─► x'

Of a layer x and ``mixed`` are given; all else is computed again from them. ``hidden`` of ``train/prefix_tree.py`` is
the plain twin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statepool.train import row_gradient
from statepool.train.prefix_tree import Level, Tree
from statepool.train.torch_model import Shape, rotary_table

_ROWS = 512
"""Tokens of a part: its widest array then stays in the cache of a core. It fixes the order of sums over tokens."""
_SCORES = 1 << 20
"""Attention weights at once, or those of one head of one row where that is more."""


class Computed(NamedTuple):
    """What a forward pass leaves: states ``[computed, hidden]`` and attention's results ``[computed, heads * dim]``."""

    states: list[Tensor]
    """Embeddings, then what is behind each layer."""
    mixed: list[Tensor]
    """What each layer's output projection takes."""


def learned(logits: Tensor, weights: Mapping[str, Tensor], shape: Shape, tree: Tree, computed: Computed) -> Tensor:
    """``logits`` of the tree's predictors, with gradients for ``weights`` (names of a Qwen3 checkpoint, tied head)."""
    out: Tensor = _Learned.apply(logits, (list(weights), shape, tree, computed), *weights.values())
    return out


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rest: Any, *weights: Tensor) -> Tensor:
        ctx.rest = rest
        ctx.save_for_backward(*weights)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *ups: Tensor) -> tuple[Tensor | None, ...]:
        names, shape, tree, computed = ctx.rest
        weights = {name: one.detach() for name, one in zip(names, ctx.saved_tensors, strict=True)}
        found = gradients(ups[0], weights, shape, tree, computed)
        return None, None, *(found[name] for name in names)


def gradients(
    up: Tensor, weights: Mapping[str, Tensor], shape: Shape, tree: Tree, computed: Computed
) -> dict[str, Tensor]:
    """Gradients by name, of a loss whose gradient at the predictors' logits ``[learned, vocab]`` is ``up``."""
    found: dict[str, Tensor] = {}
    embedding, last = weights["model.embed_tokens.weight"], computed.states[-1]
    norm, chosen = weights["model.norm.weight"], last.index_select(0, tree.predictors)
    found["model.norm.weight"] = torch.zeros_like(norm)
    found["model.embed_tokens.weight"] = up.t() @ row_gradient.norm(chosen, norm, shape.rms_norm_eps)
    below = row_gradient.norm_back(chosen, norm, shape.rms_norm_eps, up @ embedding, found["model.norm.weight"])
    flow = torch.zeros_like(last).index_add_(0, tree.predictors, below)
    places = _Places(tree, shape, last.dtype)
    for number in reversed(range(shape.num_hidden_layers)):
        layer = _Layer(weights, number, shape, places, found)
        flow = layer.back(computed.states[number], computed.mixed[number], flow)
    found["model.embed_tokens.weight"].index_add_(0, places.tokens, flow)
    return found


class _Places:
    """Where the tokens of a tree are: positions, rows and what each row sees of the rows above it."""

    def __init__(self, tree: Tree, shape: Shape, dtype: torch.dtype) -> None:
        self.tokens = torch.cat([level.ids.flatten() for level in tree.levels])
        positions = [(level.starts[:, None] + torch.arange(level.ids.shape[1])).flatten() for level in tree.levels]
        flat = torch.cat(positions)
        tables = rotary_table(int(flat.max()) + 1, shape.head_dim, shape.rope_theta)
        half = shape.head_dim // 2
        self.cos, self.sin = (table[:, :half].to(dtype)[flat] for table in tables)
        self.levels = tree.levels
        self.spans: list[slice] = []
        self.hidden: list[Tensor] = []
        """Per level, ``[rows, tokens]`` of what it sees above it: padding."""
        padding: list[Tensor] = []
        at = 0
        for level in tree.levels:
            self.spans.append(slice(at, at + level.ids.numel()))
            at += level.ids.numel()
            none = torch.zeros(len(level.ids), 0, dtype=torch.bool)
            above = padding[level.above][level.parents] if level.above >= 0 else none
            self.hidden.append(above)
            padding.append(torch.cat((above, torch.arange(level.ids.shape[1]) >= level.lengths[:, None]), 1))

    def turn(self, part: slice) -> row_gradient.Turn:
        """The angles of a part's positions."""
        return self.cos[part], self.sin[part]


class _Layer:
    """One layer's way back; puts its weights' gradients into ``found``."""

    def __init__(
        self, weights: Mapping[str, Tensor], number: int, shape: Shape, places: _Places, found: dict[str, Tensor]
    ) -> None:
        self._at = f"model.layers.{number}"
        self._weights = weights
        self._shape = shape
        self._places = places
        self._found = found

    def back(self, x: Tensor, mixed: Tensor, up: Tensor) -> Tensor:
        """The gradient of x from that of what is behind the layer."""
        up, up_mixed = self._after(x, mixed, up)
        return up + self._before(x, mixed, up_mixed)

    def _after(self, x: Tensor, mixed: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Through MLP and output projection: gradients of what is behind attention, and of ``mixed``."""
        o, down = self._weight("self_attn.o_proj"), self._weight("mlp.down_proj")
        wide = torch.cat((self._weight("mlp.gate_proj"), self._weight("mlp.up_proj")))
        norm, inner, eps = self._weight("post_attention_layernorm"), down.shape[1], self._shape.rms_norm_eps
        own_o, own_down, own_wide = (torch.zeros_like(one) for one in (o, down, wide))
        own_norm, ups, up_mixed = torch.zeros_like(norm), torch.empty_like(up), torch.empty_like(mixed)
        for part in _parts(len(x), _ROWS):
            middle = torch.addmm(x[part], mixed[part], o.t())
            normed = row_gradient.norm(middle, norm, eps)
            both, product = normed @ wide.t(), up[part] @ down
            row_gradient.gated_back(both, product)
            own_down.addmm_(up[part].t(), product)
            own_wide.addmm_(both.t(), normed)
            below = row_gradient.norm_back(middle, norm, eps, both @ wide, own_norm)
            torch.add(up[part], below, out=ups[part])
            own_o.addmm_(ups[part].t(), mixed[part])
            torch.mm(ups[part], o, out=up_mixed[part])
        self._put("post_attention_layernorm", own_norm)
        self._put("self_attn.o_proj", own_o)
        self._put("mlp.down_proj", own_down)
        self._put("mlp.gate_proj", own_wide[:inner])
        self._put("mlp.up_proj", own_wide[inner:])
        return ups, up_mixed

    def _before(self, x: Tensor, mixed: Tensor, up: Tensor) -> Tensor:
        """Through attention, rotation, norms and projection: the gradient of x on that way."""
        shape, places = self._shape, self._places
        dim = shape.head_dim
        sizes = [n * dim for n in (shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads)]
        matrix = torch.cat([self._weight(f"self_attn.{name}_proj") for name in "qkv"])
        norms = [self._weight(f"{name}norm") for name in ("input_layer", "self_attn.q_", "self_attn.k_")]
        eps = shape.rms_norm_eps
        qkv = x.new_empty(len(x), len(matrix))
        up_qkv = torch.empty_like(qkv)
        turned = [x.new_empty(len(x), size) for size in sizes[:2]]
        for part in _parts(len(x), _ROWS):
            torch.mm(row_gradient.norm(x[part], norms[0], eps), matrix.t(), out=qkv[part])
            for one, norm, out in zip(qkv[part].split(sizes, 1), norms[1:], turned, strict=False):
                row_gradient.norm(one, norm, eps, places.turn(part), out[part])
        given = [one.unflatten(1, (-1, dim)) for one in (*turned, qkv.split(sizes, 1)[2], mixed, up)]
        self._attend(given, [one.unflatten(1, (-1, dim)) for one in up_qkv.split(sizes, 1)])
        own, own_norms, below = (
            torch.zeros_like(matrix),
            [torch.zeros_like(norm) for norm in norms],
            torch.empty_like(x),
        )
        for part in _parts(len(x), _ROWS):
            heads = zip(qkv[part].split(sizes, 1), up_qkv[part].split(sizes, 1), strict=True)
            for (one, above), norm, total in zip(heads, norms[1:], own_norms[1:], strict=False):
                row_gradient.norm_back(one, norm, eps, above, total, places.turn(part))
            own.addmm_(up_qkv[part].t(), row_gradient.norm(x[part], norms[0], eps))
            torch.mm(up_qkv[part], matrix, out=below[part])
            row_gradient.norm_back(x[part], norms[0], eps, below[part], own_norms[0])
        for name, found in zip("qkv", own.split(sizes), strict=True):
            self._put(f"self_attn.{name}_proj", found)
        for name, found in zip(("input_layer", "self_attn.q_", "self_attn.k_"), own_norms, strict=True):
            self._put(f"{name}norm", found)
        return below

    def _attend(self, given: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """Puts the gradients of queries, keys and values ``[computed, heads, dim]`` into ``out``.

        ``given`` are these, what attention made of them, and the gradient at that.
        """
        q, k, v, mixed, up = given
        heads = k.shape[1]
        along = (up * mixed).sum(-1)
        seen: list[tuple[Tensor, Tensor]] = []
        for level, span in zip(self._places.levels, self._places.spans, strict=True):
            own = [_rows(one[span], level, heads) for one in (k, v)]
            if level.above >= 0:
                own = [torch.cat((a[level.parents], b), 2) for a, b in zip(seen[level.above], own, strict=True)]
            seen.append((own[0], own[1]))
        ups = [(keys.new_zeros(keys.shape), values.new_zeros(values.shape)) for keys, values in seen]
        up_q, up_k, up_v = out
        for number in reversed(range(len(seen))):  # a level's own come after those that continue it
            level, span = self._places.levels[number], self._places.spans[number]
            grouped = [_rows(one[span], level, heads) for one in (q, up, along[:, :, None])]
            below = _scores_back(grouped, seen[number], ups[number], self._places.hidden[number], level)
            up_q[span] = below.unflatten(2, (level.ids.shape[1], -1)).permute(0, 2, 1, 3, 4).reshape(up_q[span].shape)
            width = level.ids.shape[1]
            for target, whole in ((up_k, ups[number][0]), (up_v, ups[number][1])):
                target[span] = whole[:, :, -width:].transpose(1, 2).reshape(target[span].shape)
            if level.above >= 0:
                for target, whole in zip(ups[level.above], ups[number], strict=True):
                    target.index_add_(0, level.parents, whole[:, :, :-width])

    def _weight(self, name: str) -> Tensor:
        return self._weights[f"{self._at}.{name}.weight"]

    def _put(self, name: str, gradient: Tensor) -> None:
        self._found[f"{self._at}.{name}.weight"] = gradient


def _rows(x: Tensor, level: Level, heads: int) -> Tensor:
    """``[tokens, heads * n, dim]`` of a level as ``[rows, heads, width * n, dim]``: queries beside their keys' head."""
    rows, width = level.ids.shape
    return x.view(rows, width, heads, -1, x.shape[-1]).permute(0, 2, 1, 3, 4).flatten(2, 3)


def _scores_back(
    grouped: Sequence[Tensor], seen: tuple[Tensor, Tensor], ups: tuple[Tensor, Tensor], hidden: Tensor, level: Level
) -> Tensor:
    """Of one level: adds to the gradients ``ups`` of keys and values, and returns that of the queries."""
    (q, up, along), (keys, values) = (one.flatten(0, 1) for one in grouped), (one.flatten(0, 1) for one in seen)
    up_keys, up_values = (one.flatten(0, 1) for one in ups)
    heads, width, context = seen[0].shape[1], level.ids.shape[1], keys.shape[1]
    scale, below = float(q.shape[-1]) ** -0.5, torch.empty_like(q)
    padded = hidden.repeat_interleave(heads, 0) if bool(hidden.any()) else None
    for part in _parts(len(q), _SCORES // (q.shape[1] * context)):
        weights = torch.bmm(q[part] * scale, keys[part].transpose(1, 2))
        up_scores = torch.bmm(up[part], values[part].transpose(1, 2))
        padding = None if padded is None else padded[part]
        row_gradient.softmax_back(weights, up_scores, along[part, :, 0], padding, width)
        up_values[part].baddbmm_(weights.transpose(1, 2), up[part])
        torch.bmm(up_scores, keys[part], out=below[part]).mul_(scale)
        up_keys[part].baddbmm_(up_scores.transpose(1, 2), q[part], alpha=scale)
    out: Tensor = below.unflatten(0, (-1, heads))
    return out


def _parts(rows: int, most: int) -> Iterator[slice]:
    step = max(1, most)
    return (slice(at, at + step) for at in range(0, rows, step))
