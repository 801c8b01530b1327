"""How the probe model is trained: copying makes the heads that find, then needles in longer and longer texts.

The whole run is a function of the recipe and its seed. A stage ends when its loss has fallen far enough, so that the
sudden rise from guessing to finding, whose moment no seed tells in advance, costs what it costs and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from statepool.core.errors import InvalidConfig
from statepool.engine.attention.spec import AttentionSpec
from statepool.engine.attention.wave.config import WaveConfig
from statepool.train.packed import block_states
from statepool.train.prefix_tree import Sample
from statepool.train.pretrain import optimizers
from statepool.train.probe.questions import KINDS, VOCABULARY, Question, copies
from statepool.train.torch_model import Qwen3, Shape

SHAPE = Shape(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=192, num_hidden_layers=2, max_position_embeddings=4096
)
"""Four heads of 32 over two: 177 thousand parameters."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Texts of one length.

    Attributes:
        length: tokens of a text.
        batch: texts per step.
        pairs: keys in a text; 0 for copying.
        steps: most steps.
        enough: loss, over the last ``WINDOW`` steps, at which the stage ends.
        rate: multiplies the learning rate.
    """

    length: int
    batch: int
    pairs: int
    steps: int
    enough: float
    rate: float = 1.0


STAGES = (
    Stage(64, 32, 0, 400, 0.3),
    Stage(128, 32, 24, 600, 0.05),
    Stage(256, 16, 48, 400, 0.03),
    Stage(512, 8, 96, 400, 0.02),
    Stage(1024, 4, 144, 400, 0.02, 0.7),
    Stage(2048, 2, 192, 600, 0.01, 0.5),
    Stage(2048, 2, 192, 200, 0.0, 0.1),
)
WINDOW = 20


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on.

    Attributes:
        seed: of weights and texts.
        shape: of the model.
        stages: one after another.
        learning_rate: of AdamW and Muon alike.
        warmup: steps over which it rises.
        attention: ``full``, or block attention for the first tokens, as in ``EngineConfig.attention``; its ``first``
            and ``last`` layers stay full (the hybrid by layers of MoBA 3.2).
        full: share of the tokens, the last, that attend fully after all (the hybrid by tokens).

    Raises:
        InvalidConfig: another attention, or a share that is none.
    """

    seed: int = 0
    shape: Shape = SHAPE
    stages: tuple[Stage, ...] = STAGES
    learning_rate: float = 3e-3
    warmup: int = 30
    attention: str = "full"
    full: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.spec.sparse, WaveConfig):
            raise InvalidConfig(f"attention {self.attention!r} cannot be trained; full and moba can", param="attention")
        if not 0 <= self.full <= 1:
            raise InvalidConfig(f"full must be between 0 and 1, got {self.full}", param="full")

    @property
    def spec(self) -> AttentionSpec:
        """The attention of the first tokens."""
        return AttentionSpec.parse(self.attention)

    def attention_at(self, stage: int, step: int) -> AttentionSpec:
        """The attention of one step. A stage that ended early counts as if it had not."""
        sizes = [each.steps * each.length * each.batch for each in self.stages]
        now = sum(sizes[:stage]) + step * self.stages[stage].length * self.stages[stage].batch
        return self.spec if now < (1 - self.full) * sum(sizes) else AttentionSpec()


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run: how far it is, and its loss."""

    number: int
    length: int
    tokens: int
    loss: float


def train(recipe: Recipe, model: Qwen3) -> Iterator[Step]:
    """Train ``model`` in place, a step per item."""
    steppers = optimizers(model, recipe.learning_rate, 0.0)
    number = tokens = 0
    for at, stage in enumerate(recipe.stages):
        recent: list[float] = []
        for step in range(stage.steps):
            questions = [draw(Random(f"{recipe.seed}:{at}:{step}:{row}"), stage) for row in range(stage.batch)]
            rate = recipe.learning_rate * stage.rate * min(1.0, (number + 1) / recipe.warmup)
            loss = loss_of(model, questions, recipe.attention_at(at, step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                for group in stepper.param_groups:
                    group["lr"] = rate * (5 if group["params"][0].ndim == 1 else 1)
                stepper.step()
                stepper.zero_grad()
            model.pin()
            number, tokens = number + 1, tokens + stage.length * stage.batch
            recent = [*recent[1 - WINDOW :], loss.item()]
            yield Step(number, stage.length, tokens, recent[-1])
            if len(recent) == WINDOW and sum(recent) / WINDOW < stage.enough:
                break


def draw(rng: Random, stage: Stage) -> Question:
    """A text of a stage; most are needles, because chains come with them."""
    if not stage.pairs:
        return copies(rng, stage.length)
    kind = "needles" if rng.random() < 0.7 else "chains"
    return KINDS[kind](rng, stage.length, stage.pairs, max(2, stage.length // 64))


def loss_of(model: Qwen3, questions: list[Question], attention: AttentionSpec) -> Tensor:
    """Mean cross entropy of the tokens to be written."""
    if attention.sparse is None:
        longest = max(len(question.tokens) for question in questions)
        ids = torch.tensor([[*q.tokens, *[0] * (longest - len(q.tokens))] for q in questions])
        wanted = [(row, at) for row, question in enumerate(questions) for answer in question.answers for at in answer]
        rows, places = torch.tensor(wanted).T
        states, targets = model.hidden(ids)[rows, places - 1], ids[rows, places]
    else:
        states, targets, *_ = block_states(model, [_sample(question) for question in questions], attention)
    return functional.cross_entropy(model.logits(states), targets)


def _sample(question: Question) -> Sample:
    learn = [False] * len(question.tokens)
    for answer in question.answers:
        for at in answer:
            learn[at] = True
    return Sample(question.tokens, learn, 1)
