"""A12: the probe model trained with full attention and with MoBA's two hybrids, on the same texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import torch

from bench.machine import LoadWatch
from bench.row import Row, asked
from statepool.engine.attention.spec import AttentionSpec
from statepool.train.probe.recipe import Recipe, Stage, draw, loss_of, train
from statepool.train.torch_model import Qwen3

_STAGES = (
    Stage(64, 32, 0, 200, 0.0),
    Stage(128, 32, 24, 500, 0.0),
    Stage(256, 16, 48, 300, 0.0, 0.5),
    Stage(256, 16, 48, 200, 0.0, 0.1),
)
_MOBA = "moba:block=32,topk=3"
_HELD_OUT = 32


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A12a: 90 % of the tokens with blocks and 10 % in full. A12b: the last layer in full."""
    wanted = [name for name in ("A12a", "A12b") if asked(name, only)]
    if not wanted:
        return
    torch.set_num_threads(1)
    watch = LoadWatch()
    dense = _loss("full", 0.0, quick)[1]
    for name, attention, full, what in (
        ("A12a", _MOBA, 0.1, "blocks for 90 % of the tokens, then full attention"),
        ("A12b", _MOBA + ",last=1", 0.0, "blocks in all layers but the last"),
    ):
        if name in wanted:
            row = Row(name, f"held-out loss above that of full attention: {what}", "nats", "lower", 1e-3)
            sparse, whole = _loss(attention, full, quick)
            row.value = (whole if full else sparse) - dense
            row.own, row.peer, row.peer_value = f"{row.value + dense:.5f}", "full attention", dense
            row.note = f"with its blocks {sparse:.5f}, in full {whole:.5f}; block 32, topk 3, texts of 256 tokens"
            row.command, row.load = "python -m bench attention --only A12", watch.stop()
            yield row


def _loss(attention: str, full: float, quick: bool) -> tuple[float, float]:
    """Held-out loss after training, with the attention of the training and with full attention."""
    stages = tuple(Stage(s.length, s.batch, s.pairs, 4, 0.0, s.rate) for s in _STAGES) if quick else _STAGES
    recipe = Recipe(stages=stages, attention=attention, full=full)
    model = Qwen3(recipe.shape, recipe.seed)
    for _ in train(recipe, model):
        pass
    asked = [draw(Random(f"held out:{i}"), stages[-1]) for i in range(_HELD_OUT)]
    with torch.no_grad():
        return loss_of(model, asked, recipe.spec).item(), loss_of(model, asked, AttentionSpec()).item()
