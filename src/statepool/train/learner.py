"""One step of learning: from conversations, or demonstrations, to gradients and new weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from statepool.core.errors import StatepoolError
from statepool.train.config import TrainConfig
from statepool.train.grpo import LossConfig, Total, advantages, policy_loss
from statepool.train.policy import Policy
from statepool.train.prefix_tree import Sample
from statepool.train.trajectory import Trajectory


class NotFinite(StatepoolError):
    """The loss or a gradient is no number; nothing was changed."""

    code = "loss_not_finite"


class GapTooLarge(StatepoolError):
    """Trainer and engine disagree about a token by more than the run allows."""

    code = "logprob_gap"


@dataclass(frozen=True, slots=True)
class Item:
    """A conversation that takes part in a step."""

    sample: Sample
    group: int
    advantage: float
    engine: Sequence[float]
    """The engine's log-probabilities behind the prompt."""


class Learner:
    """The optimizer of one policy. A step is a function of the weights, its state and the batch."""

    def __init__(self, policy: Policy, config: TrainConfig, loss: LossConfig, temperature: float) -> None:
        self.policy = policy
        self.config = config
        self.loss = loss
        self.temperature = temperature
        self.parameters = [p for p in policy.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self.reference: Policy | None = None
        """The model that ``kl`` measures the distance to."""

    def imitate(self, samples: Sequence[Sample], rate: float) -> dict[str, float]:
        """One step of cross entropy, the mean over learned tokens; returns what to watch."""
        tokens = sum(sum(sample.learn) for sample in samples)
        loss = 0.0
        for part in packed(samples, self.config.micro_tokens):
            scored = self.policy.score([samples[i] for i in part])
            share = -scored.logprobs.sum() / tokens
            share.backward()
            loss += share.item()
        return {"loss": loss, "grad_norm": self._step(loss, rate)}

    def reinforce(self, trajectories: Sequence[Trajectory], rate: float) -> dict[str, float]:
        """One batch of GRPO in ``minibatches`` steps; returns what to watch."""
        items = self.items(trajectories)
        seen = {"loss": 0.0, "grad_norm": 0.0, "clipped": 0.0, "kl": 0.0, "entropy": 0.0}
        seen |= {"gap_max": 0.0, "gap_mean": 0.0, "used": float(len(items)), "learned": 0.0}
        if not items:
            return seen
        groups = sorted({item.group for item in items})
        several = self.config.minibatches > 1
        before = self._old(items) if several else {}
        for number in range(self.config.minibatches):
            mine = set(groups[number :: self.config.minibatches])
            chosen = [i for i, item in enumerate(items) if item.group in mine]
            if chosen:
                self._minibatch([items[i] for i in chosen], [before.get(i) for i in chosen], rate, seen)
        tokens = max(seen["learned"], 1.0)
        for name in ("clipped", "kl", "entropy", "gap_mean"):
            seen[name] /= tokens
        return seen

    def items(self, trajectories: Sequence[Trajectory]) -> list[Item]:
        """Conversations with a reward and something to compare it with."""
        judged = [t for t in trajectories if t.verdict is not None]
        if not judged:
            return []
        rewards = torch.tensor([t.verdict.score for t in judged if t.verdict], dtype=torch.float64)
        values = advantages(rewards, [t.group for t in judged], self.config.normalise).tolist()
        sizes: dict[int, int] = {}
        for trajectory in judged:
            sizes[trajectory.group] = sizes.get(trajectory.group, 0) + 1
        return [
            Item(trajectory.sample(), trajectory.group, value, trajectory.logprobs())
            for trajectory, value in zip(judged, values, strict=True)
            if sizes[trajectory.group] > 1
            and (value != 0 or self.loss.kl > 0)
            and not (self.config.mask_truncated and trajectory.end == "length")
        ]

    def _minibatch(
        self, items: Sequence[Item], before: Sequence[Tensor | None], rate: float, seen: dict[str, float]
    ) -> None:
        learned = [sum(item.sample.learn) for item in items]
        total = Total(float(sum(learned)), float(sum(n > 0 for n in learned)))
        loss = 0.0
        for part in packed([item.sample for item in items], self.config.micro_tokens):
            chosen = [items[i] for i in part]
            scored = self.policy.score([item.sample for item in chosen], self.temperature)
            width = scored.mask.shape[1]
            engine = torch.stack([_row(item.engine, width) for item in chosen])
            now = scored.logprobs.detach()
            rows = [now[k] if (old := before[i]) is None else _row(old, width) for k, i in enumerate(part)]
            reference = None
            if self.loss.kl and self.reference is not None:
                with torch.no_grad():
                    reference = self.reference.score([item.sample for item in chosen], self.temperature).logprobs
            share, watched = policy_loss(
                scored.logprobs,
                torch.stack(rows),
                torch.tensor([item.advantage for item in chosen], dtype=now.dtype),
                scored.mask,
                self.loss,
                total,
                engine,
                reference,
            )
            share.backward()
            loss += share.item()
            gap = ((torch.stack(rows) - engine) * scored.mask).abs()
            seen["gap_max"] = max(seen["gap_max"], gap.max().item())
            seen["gap_mean"] += gap.sum().item()
            seen["entropy"] += scored.entropy.sum().item()
            seen["learned"] += scored.mask.sum().item()
            for name, value in watched.items():
                seen[name] += value
        limit = self.config.max_gap
        if limit is not None and seen["gap_max"] > limit:
            self.optimizer.zero_grad()
            raise GapTooLarge(
                f"trainer and engine differ by {seen['gap_max']:.2e} in a log-probability, more than max_gap {limit:g}",
                param="max_gap",
            )
        seen["grad_norm"] = self._step(loss, rate)
        seen["loss"] += loss / self.config.minibatches

    @torch.no_grad()
    def _old(self, items: Sequence[Item]) -> dict[int, Tensor]:
        """Log-probabilities under the weights of now, row by row."""
        found: dict[int, Tensor] = {}
        for part in packed([item.sample for item in items], self.config.micro_tokens):
            scored = self.policy.score([items[i].sample for i in part], self.temperature).logprobs
            found |= {i: scored[row] for row, i in enumerate(part)}
        return found

    def _step(self, loss: float, rate: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            raise NotFinite(
                f"the loss is {loss} and its gradient's norm {norm}, so this step was not taken; "
                "the last checkpoint holds. A lower rate or grad_clip may help",
                param="rate",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.policy.settle()
        return norm


def packed(samples: Sequence[Sample], most: int) -> Iterator[list[int]]:
    """Indices of parts whose tokens, a shared prompt counted once, stay within ``most``; neighbours stay together."""
    part: list[int] = []
    tokens, prompt = 0, None
    order = sorted(range(len(samples)), key=lambda i: (tuple(samples[i].tokens[: samples[i].prompt]), i))
    for i in order:
        own = tuple(samples[i].tokens[: samples[i].prompt])
        size = len(samples[i].tokens) - (len(own) if own == prompt else 0)
        if part and tokens + size > most:
            yield part
            part, tokens, size = [], 0, len(samples[i].tokens)
        part.append(i)
        tokens, prompt = tokens + size, own
    if part:
        yield part


def _row(values: Sequence[float] | Tensor, width: int) -> Tensor:
    row = torch.zeros(width)
    count = min(width, len(values))
    row[:count] = torch.as_tensor(values, dtype=row.dtype)[:count]
    return row
