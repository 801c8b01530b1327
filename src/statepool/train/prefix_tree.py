"""Responses to one prompt share its computation: a batch as a tree of three levels, with full gradients.

A group's responses begin with the same prompt, and all prompts of a task with the same system text. In rows of whole
sequences most tokens would be copies. Here the common beginning is computed once, each prompt's rest once, and the
responses attend to both. It is the same sum as in rows, in another order.

    level 0   common beginning            one row
    level 1   rest of each prompt         a row per prompt
    level 2…  what came after the prompt  a row per response, in a level for each class of lengths

Rows of a level are as wide as its longest. A response that ran out of tokens is four times as long as most, so lengths
are kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from statepool.train.given import valued
from statepool.train.torch_model import Attention, Layer, Qwen3, rotary_table

FULL = 0.75
"""The shortest row of a level has so large a share of the tokens of its longest."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A sequence to learn from: ``learn[i]`` says that token i is to be predicted; the prompt's never are."""

    tokens: Sequence[int]
    learn: Sequence[bool]
    prompt: int
    """Leading tokens that were given, at least 1."""


class Level(NamedTuple):
    """Rows of tokens, each behind a row of the level above."""

    ids: Tensor
    """int64 ``[rows, width]``, padded at the end."""
    lengths: Tensor
    parents: Tensor
    """int64 ``[rows]``: the row, in the level above, that each continues."""
    starts: Tensor
    """Position of the first token."""
    above: int
    """The level that this one continues; -1 for none."""


class Tree(NamedTuple):
    """A batch of samples laid out as a tree."""

    levels: tuple[Level, ...]
    predictors: Tensor
    """int64 ``[learned]``: the place, in all rows of all levels one after another, that predicts each token."""
    targets: Tensor
    rows: Tensor
    """int64 ``[learned]``: the sample of each learned token, and in ``columns`` its place behind the prompt."""
    columns: Tensor
    shape: tuple[int, int]
    """Samples, and tokens behind the longest prompt."""

    @property
    def computed(self) -> int:
        """Tokens that go through the model, padding included."""
        return sum(level.ids.numel() for level in self.levels)


def plant(samples: Sequence[Sample]) -> Tree:
    """Lay out samples; those with equal prompts share a row of level 1."""
    prompts = list(dict.fromkeys(tuple(s.tokens[: s.prompt]) for s in samples))
    shared = min(_common(prompts[0], prompt) for prompt in prompts)
    shared = min(shared, min(map(len, prompts)) - 1)  # every prompt keeps a token of its own
    number = {prompt: i for i, prompt in enumerate(prompts)}
    mine = [number[tuple(s.tokens[: s.prompt])] for s in samples]
    # The last token of a sequence predicts nothing.
    tails = [list(s.tokens[s.prompt : -1]) for s in samples]
    levels = [_level([list(prompts[0][:shared])], [0], [0], -1)] if shared else []
    up = len(levels) - 1
    levels.append(_level([list(p[shared:]) for p in prompts], [0] * len(prompts), [shared] * len(prompts), up))
    asked = levels[-1]
    behind = shared + asked.ids.numel()
    place = [0] * len(samples)
    for kept in _classes([len(tail) for tail in tails]):
        level = _level([tails[i] for i in kept], [mine[i] for i in kept], [samples[i].prompt for i in kept], up + 1)
        for row, i in enumerate(kept):
            place[i] = behind + row * level.ids.shape[1]
        behind += level.ids.numel()
        levels.append(level)
    predictors, targets, rows, columns = [], [], [], []
    for row, sample in enumerate(samples):
        last = shared + mine[row] * asked.ids.shape[1] + int(asked.lengths[mine[row]]) - 1
        for column, at in enumerate(range(sample.prompt, len(sample.tokens))):
            if sample.learn[at]:
                predictors.append(place[row] + column - 1 if column else last)
                targets.append(sample.tokens[at])
                rows.append(row)
                columns.append(column)
    longest = max(len(s.tokens) - s.prompt for s in samples)
    parts = [torch.tensor(x, dtype=torch.int64) for x in (predictors, targets, rows, columns)]
    return Tree(tuple(levels), parts[0], parts[1], parts[2], parts[3], (len(samples), longest))


def hidden(model: Qwen3, tree: Tree, values: Sequence[Tensor] = ()) -> Tensor:
    """Normed last hidden states ``[computed, hidden]`` of all rows of all levels, one after another.

    ``values`` are the states behind each layer where another arithmetic computed them; then gradients alone are ours.
    """
    shape = model.shape
    longest = max(int((level.starts + level.lengths).max()) for level in tree.levels)
    cos, sin = rotary_table(max(longest, 1), shape.head_dim, shape.rope_theta)
    states = [model.model.embed_tokens(level.ids) for level in tree.levels]
    cos, sin = cos.to(states[0].dtype), sin.to(states[0].dtype)
    rotary, masks, valid = [], [], list[Tensor]()
    for level in tree.levels:
        width = level.ids.shape[1]
        places = (level.starts[:, None] + torch.arange(width)).clamp(max=longest - 1)
        rotary.append((cos[places][:, None], sin[places][:, None]))
        own = torch.arange(width)[None] < level.lengths[:, None]
        mask = torch.ones(width, width, dtype=torch.bool).tril()[None].expand(len(own), -1, -1)
        if level.above >= 0:
            above = valid[level.above][level.parents]
            mask = torch.cat((above[:, None].expand(-1, width, -1), mask), 2)
            own = torch.cat((above, own), 1)
        valid.append(own)
        masks.append(torch.zeros(mask.shape, dtype=cos.dtype).masked_fill_(~mask, -torch.inf)[:, None])
    sizes = [level.ids.numel() for level in tree.levels]
    for number, layer in enumerate(model.model.layers):
        known = values[number].split(sizes) if values else [None] * len(sizes)
        states = _layer(layer, tree, states, rotary, masks, known)  # type: ignore[arg-type]
    out: Tensor = model.model.norm(torch.cat([x.flatten(0, 1) for x in states]))
    return out


def _layer(
    layer: Layer,
    tree: Tree,
    states: list[Tensor],
    rotary: list[tuple[Tensor, Tensor]],
    masks: list[Tensor],
    values: Sequence[Tensor | None],
) -> list[Tensor]:
    attention: Attention = layer.self_attn
    out: list[Tensor] = []
    cache: list[tuple[Tensor, Tensor]] = []
    for level, x, turn, mask, value in zip(tree.levels, states, rotary, masks, values, strict=True):
        q, k, v = attention.project(layer.input_layernorm(x), turn)
        if level.above >= 0:
            above = cache[level.above]
            parents = level.parents
            k, v = (torch.cat((up.index_select(0, parents), own), 2) for up, own in zip(above, (k, v), strict=True))
        cache.append((k, v))
        group = q.shape[1] // k.shape[1]
        mixed = functional.scaled_dot_product_attention(
            q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), attn_mask=mask
        )
        x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        out.append(x if value is None else valued(x, value.view_as(x)))
    return out


def _level(rows: list[list[int]], parents: list[int], starts: list[int], above: int) -> Level:
    width = max(1, *map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return Level(ids, torch.tensor(list(map(len, rows))), torch.tensor(parents), torch.tensor(starts), above)


def _classes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of rows, long ones first, in classes whose shortest has ``FULL`` of the tokens of its longest."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    kept: list[int] = []
    for i in order:
        if kept and lengths[i] < FULL * lengths[kept[0]]:
            yield kept
            kept = []
        kept.append(i)
    yield kept


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
