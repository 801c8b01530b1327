"""Pretraining of the bundled model: a recipe, a loop that can stop anywhere, and a curve.

The whole run is a function of the recipe: weights from its seed, data from (seed, step), learning rate from step.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from statepool.train.corpus import Corpus, Stage, sample_text
from statepool.train.muon import Muon
from statepool.train.tokenizer import train as train_tokenizer
from statepool.train.torch_model import Qwen3, Shape

STAGES = (
    Stage(64, 32, 200, {"copy_words": 1}, gain=5),
    Stage(
        128,
        16,
        300,
        {"gapped": 1.5, "copy_words": 0.5, "restate": 3, "facts": 3, "echo": 2, "sums": 2},
        gain=5,
        rate=0.7,
    ),
    Stage(
        256, 8, 400, {"copy": 0.3, "restate": 2, "facts": 3, "chains": 3, "echo": 1.5, "sums": 2.5}, gain=5, rate=0.7
    ),
    Stage(512, 4, 60, {"restate": 1, "facts": 3, "chains": 2, "echo": 1, "sums": 1.5, "calls": 4}, gain=5, rate=0.6),
    Stage(512, 4, 440, {"restate": 1, "facts": 3, "chains": 1.5, "echo": 1, "sums": 4, "calls": 4}, gain=5, rate=0.6),
    Stage(1024, 2, 700, {"restate": 1, "facts": 3, "chains": 1, "echo": 1, "sums": 3, "calls": 3}, gain=3, rate=0.5),
    Stage(2048, 1, 400, {"restate": 1, "facts": 3, "chains": 1, "echo": 1, "sums": 3, "calls": 2}, gain=3, rate=0.5),
)
"""The curriculum: copying makes the heads that find, short contexts make them fast, long ones make them precise."""


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on."""

    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    stages: tuple[Stage, ...] = STAGES
    learning_rate: float = 3e-3
    warmup: int = 50
    decay: float = 0.3
    """Fraction of all steps over which the rate falls linearly to a twentieth at the end."""
    weight_decay: float = 0.02
    clip: float = 1.0

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> Stage:
        """Return the stage a step belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(f"the recipe ends before step {step}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: a ramp, a plateau and a fall."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, 0.05 + 0.95 * left)


class Run:
    """A training run in a folder: tokenizer.json, checkpoint.pt and curve.jsonl."""

    def __init__(self, recipe: Recipe, out: Path, resume: bool = False) -> None:
        self.recipe = recipe
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        trained = out / "tokenizer.json"
        if not trained.exists():
            train_tokenizer(sample_text(recipe.seed), recipe.shape.vocab_size).save(str(trained))
        self.corpus = Corpus(Tokenizer.from_file(str(trained)))
        self.model = Qwen3(recipe.shape, recipe.seed)
        self.optimizers = optimizers(self.model, recipe.learning_rate, recipe.weight_decay)
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        if resume:
            self.load(out / "checkpoint.pt")

    def load(self, path: Path) -> None:
        """Take up weights, optimizer and position from a checkpoint."""
        if not path.exists():
            raise FileNotFoundError(f"cannot resume: there is no checkpoint at {path}")
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.tokens, self.seconds = saved["step"], saved["tokens"], saved["seconds"]

    def save(self) -> None:
        """Write the checkpoint; a crash while writing leaves the old one."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        fresh = self.out / "checkpoint.new"
        torch.save(state, fresh)
        fresh.replace(self.out / "checkpoint.pt")
        (self.out / "recipe.json").write_text(json.dumps(asdict(self.recipe), indent=1))

    def advance(self) -> float:
        """Do one step and return its loss."""
        stage = self.recipe.stage(self.step)
        rows, masks = self.corpus.batch(self.recipe.seed, self.step, stage)
        loss = masked_loss(self.model, torch.tensor(rows), torch.tensor(masks))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                gain = stage.gain if group["params"][0].ndim == 1 else 1.0
                group["lr"] = self.recipe.rate(self.step) * stage.rate * gain
            optimizer.step()
            optimizer.zero_grad()
        self.model.pin()
        self.step += 1
        self.tokens += stage.length * stage.batch
        return loss.item()


def optimizers(model: Qwen3, rate: float, weight_decay: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices, AdamW for the embedding and, in a group of their own, the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    words: dict[str, Any] = {"params": [model.model.embed_tokens.weight]}
    norms: dict[str, Any] = {"params": [p for p in model.parameters() if p.ndim == 1]}
    return (
        Muon(matrices, lr=rate, weight_decay=weight_decay),
        torch.optim.AdamW([words, norms], lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    )


def masked_loss(model: Qwen3, ids: Tensor, learn: Tensor) -> Tensor:
    """Return the mean cross entropy of the tokens to learn, each predicted from those before it; 0 if none."""
    wanted = learn[:, 1:]
    hidden = model.hidden(ids[:, :-1])[wanted]
    if not len(hidden):
        return model.logits(hidden).sum()
    return functional.cross_entropy(model.logits(hidden), ids[:, 1:][wanted])


def pretrain(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    every: int = 20,
) -> Run:
    """Train until the recipe, `steps` or `minutes` end; log to curve.jsonl and save every third line and at the end."""
    run = Run(recipe, out, resume)
    last = min(recipe.steps, steps if steps is not None else recipe.steps)
    began, losses = time.monotonic(), []
    before = run.seconds
    with (out / "curve.jsonl").open("a" if resume else "w") as curve:
        while run.step < last and (minutes is None or time.monotonic() - began < 60 * minutes):
            losses.append(run.advance())
            run.seconds = before + time.monotonic() - began
            if run.step % every == 0 or run.step == last:
                line = {
                    "step": run.step,
                    "tokens": run.tokens,
                    "seconds": round(run.seconds, 1),
                    "length": recipe.stage(run.step - 1).length,
                    "loss": round(sum(losses) / len(losses), 4),
                }
                print(json.dumps(line), file=curve, flush=True)
                losses.clear()
                if run.step % (every * 3) == 0:
                    run.save()
    run.save()
    return run
