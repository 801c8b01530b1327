"""How often the model's greedy answer is the right one, in fp32 and with int8 weights and activations."""

from __future__ import annotations

import copy
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional

from statepool.tasks.synthetic import FAMILIES
from statepool.train.corpus import Corpus, segments
from statepool.train.torch_model import Qwen3

LENGTHS: dict[str, tuple[int, ...]] = {
    "facts": (128, 256, 512, 1000, 1900),
    "chains": (128, 256, 512),
    "sums": (100, 150, 200, 250),
    "echo": (64, 128, 256),
    "calls": (384, 512, 1024),
}
"""Sizes to evaluate each family at, in tokens; for sums, the size over 50 is the longest number of digits."""


class Int8Linear(nn.Module):
    """A linear layer as int8 kernels compute it: a scale per output channel and one per token."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = rounded(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply rounded activations by rounded weights."""
        return functional.linear(rounded(x), self.weight)


def rounded(x: Tensor) -> Tensor:
    """Round each row to 255 evenly spaced levels between minus and plus its largest magnitude."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / 127
    return (x / scale).round() * scale


class Int8Qwen3(Qwen3):
    """The model with every product, the head's too, in fake-quantised int8."""

    @staticmethod
    def of(model: Qwen3) -> Int8Qwen3:
        """Return a quantised copy."""
        other = Int8Qwen3(model.shape)
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        for module in list(other.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child.weight))
        return other

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits of rounded states and a rounded head."""
        return functional.linear(rounded(hidden), rounded(self.model.embed_tokens.weight))


@torch.inference_mode()
def score(model: Qwen3, corpus: Corpus, family: str, size: int, count: int, seed: int = 1) -> tuple[float, float, int]:
    """Return accuracy, mean loss per answer token and the longest prompt over `count` problems.

    A problem counts as right when greedy decoding gives the reference answer token for token. That holds exactly
    when each reference token is the most likely one after the reference tokens before it: one pass shows it.
    """
    right, loss, tokens, longest = 0, 0.0, 0, 0
    for index in range(count):
        rng = Random(f"evaluate:{family}:{size}:{seed}:{index}")
        episode = FAMILIES[family].draw(rng, size, 1)
        ids, _ = corpus.encode(parts := segments(episode, episode.thinking or family != "sums"))
        turn = rng.choice([i for i, (_, learned) in enumerate(parts) if learned])
        start = len(corpus.encode(parts[:turn])[0])
        answer = corpus.encode(parts[turn : turn + 1])[0]
        logits = model.logits(model.hidden(torch.tensor([ids[: start + len(answer) - 1]]))[0, start - 1 :])
        wanted = torch.tensor(answer)
        right += bool((logits.argmax(-1) == wanted).all())
        loss += functional.cross_entropy(logits, wanted, reduction="sum").item()
        tokens += len(answer)
        longest = max(longest, start + len(answer))
    return right / count, loss / tokens, longest


def evaluate(
    model: Qwen3, corpus: Corpus, count: int = 50, quantise: bool = False
) -> list[dict[str, float | int | str]]:
    """Score every family at every size, with the weights rounded to bf16 as an export holds them."""
    exported = copy.deepcopy(model).bfloat16().float()
    judged = Int8Qwen3.of(exported) if quantise else exported
    rows: list[dict[str, float | int | str]] = []
    for family, sizes in LENGTHS.items():
        for size in sizes:
            accuracy, loss, longest = score(judged, corpus, family, size, count)
            rows.append(
                {"family": family, "size": size, "longest": longest, "accuracy": accuracy, "loss": round(loss, 5)}
            )
    return rows
