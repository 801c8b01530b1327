"""The arithmetic of group-relative policy optimisation: advantages, clipped losses, their aggregation.

Pure functions of tensors. Rows are responses, columns their tokens; ``mask`` is 1 where the model chose the token and 0
for padding and for what a tool said. GRPO is DeepSeekMath (2402.03300) 4.1, clip-higher and token means are DAPO
(2503.14476), no deviation and a constant length are Dr.GRPO (2503.20783), sequence ratios are GSPO (2507.18071),
CISPO is 2506.13585, the dual clip 1912.09729.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from statepool.core.errors import InvalidConfig, InvalidRequest

Normalise = Literal["group", "none", "batch", "rloo"]
Aggregate = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
EPSILON = 1e-6
_LOG_RATIO = 20.0
"""Log-ratios beyond this say that something else is wrong; their exponential must not decide a step."""


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Which member of the family to minimise.

    Args:
        ratio: ``token`` (GRPO), ``sequence`` (GSPO: the mean log-ratio of the response counts for each token) or
            ``cispo`` (the clipped ratio is a weight that no gradient passes).
        clip_low, clip_high: how far a ratio may fall below or rise above 1 and still be rewarded for it.
        dual_clip: most a bad token's ratio may weigh, at least 1; None for no such bound. For ``token`` ratios.
        aggregate: how token losses become one number; ``seq-mean-token-sum-norm`` divides by ``length``.
        length: the constant of ``seq-mean-token-sum-norm``, usually the longest response allowed.
        kl: weight of the distance to the reference model, 0 for none; ``kl_kind`` is its estimator (Schulman 2020).
        tis: most that the ratio of trainer to engine may weigh a token (truncated importance sampling); None for 1.
        tis_level: one weight per ``token``, or per ``sequence`` (the product over the response).

    Raises:
        InvalidConfig: a value out of range.
    """

    ratio: Literal["token", "sequence", "cispo"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 3.0
    aggregate: Aggregate = "token-mean"
    length: int | None = None
    kl: float = 0.0
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    tis: float | None = 2.0
    tis_level: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise InvalidConfig(
                f"clip_low must be from 0 to 1 and clip_high at least 0, got {self.clip_low} and {self.clip_high}",
                param="clip_low",
            )
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise InvalidConfig(f"dual_clip must be above 1, got {self.dual_clip}", param="dual_clip")
        if self.aggregate == "seq-mean-token-sum-norm" and not self.length:
            raise InvalidConfig("seq-mean-token-sum-norm needs length, the constant it divides by", param="length")
        if self.kl < 0:
            raise InvalidConfig(f"kl must not be negative, got {self.kl}", param="kl")
        if self.tis is not None and self.tis <= 0:
            raise InvalidConfig(f"tis must be above 0, got {self.tis}", param="tis")


@dataclass(frozen=True, slots=True)
class Total:
    """What a whole batch holds, so that its parts add up to the same loss however it was cut."""

    tokens: float
    """Tokens the model chose."""
    sequences: float
    """Responses with at least one such token."""

    @classmethod
    def of(cls, mask: Tensor) -> Total:
        """Count a mask ``[responses, tokens]``."""
        return cls(float(mask.sum()), float((mask.sum(-1) > 0).sum()))


def advantages(rewards: Tensor, groups: Sequence[int], normalise: Normalise = "group") -> Tensor:
    """How much better each response was than its group.

    Args:
        rewards: ``[responses]``.
        groups: the group of each response.
        normalise: ``group`` divides by the group's deviation (GRPO), ``none`` does not (Dr.GRPO), ``batch`` divides by
            the deviation of all rewards, ``rloo`` compares with the mean of the others.

    Returns:
        ``[responses]`` in the type of ``rewards``. A group of one keeps its reward, as nothing compares with it.

    Raises:
        InvalidRequest: lengths differ, or a reward is not a number.
    """
    if len(groups) != len(rewards):
        raise InvalidRequest(f"{len(rewards)} rewards need as many groups, got {len(groups)}", param="groups")
    if not bool(torch.isfinite(rewards).all()):
        raise InvalidRequest("a reward is not a finite number", param="rewards")
    out = torch.empty_like(rewards)
    whole = rewards.std() if len(rewards) > 1 else torch.ones((), dtype=rewards.dtype)
    for group in dict.fromkeys(groups):
        rows = [i for i, other in enumerate(groups) if other == group]
        mine, size = rewards[rows], len(rows)
        if size == 1:
            out[rows] = mine / (1 + EPSILON) if normalise == "group" else mine
            continue
        above = mine - mine.mean()
        if normalise == "group":
            above = above / (mine.std() + EPSILON)
        elif normalise == "batch":
            above = above / (whole + EPSILON)
        elif normalise == "rloo":
            above = above * size / (size - 1)
        out[rows] = above
    return out


def aggregate(losses: Tensor, mask: Tensor, config: LossConfig, total: Total) -> Tensor:
    """One number from token losses ``[responses, tokens]``; the share of this part of the batch ``total``."""
    kept = torch.where(mask > 0, losses, 0)  # what padding holds may be anything, even nan
    if config.aggregate == "token-mean":
        return kept.sum() / max(total.tokens, 1.0)
    rows = kept.sum(-1)
    if config.aggregate == "seq-mean-token-mean":
        rows = rows / (mask.sum(-1) + 1e-8)
    elif config.aggregate == "seq-mean-token-sum-norm":
        rows = rows / float(config.length or 1)
    return rows.sum() / max(total.sequences, 1.0)


def distance(logprobs: Tensor, reference: Tensor, kind: str) -> Tensor:
    """An estimate per token of the KL divergence from the reference, from the token that was drawn."""
    above = logprobs - reference
    if kind == "k1":
        return above
    if kind == "k2":
        return 0.5 * above.square()
    below = (-above).clamp(-_LOG_RATIO, _LOG_RATIO)
    return (below.exp() - below - 1).clamp(-10, 10)


def engine_weights(trainer: Tensor, engine: Tensor, mask: Tensor, config: LossConfig) -> Tensor:
    """Truncated importance weights for the difference between two computations of the same policy, no gradient."""
    if config.tis is None:
        return torch.ones_like(mask)
    above = torch.where(mask > 0, trainer.detach() - engine, 0)
    if config.tis_level == "sequence":
        above = above.sum(-1, keepdim=True).expand_as(mask)
    return above.clamp(-_LOG_RATIO, _LOG_RATIO).exp().clamp(max=config.tis)


def token_losses(
    logprobs: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """The loss of every token and whether its ratio was clipped, both ``[responses, tokens]``.

    Args:
        logprobs: of the policy that learns.
        old: of the policy that the responses came from.
        advantage: ``[responses, tokens]`` or ``[responses, 1]``.
        mask: 1 where the model chose.
    """
    low, high = 1 - config.clip_low, 1 + config.clip_high
    logged = (logprobs - old).clamp(-_LOG_RATIO, _LOG_RATIO)
    if config.ratio == "sequence":
        # The value is the response's, the gradient each token's own: the sum over tokens is GSPO's.
        mean = torch.where(mask > 0, logprobs - old, 0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        logged = (logprobs - logprobs.detach() + mean.detach()).clamp(max=10.0)
    ratio = logged.exp()
    clipped = ratio.clamp(low, high)
    if config.ratio == "cispo":
        return -clipped.detach() * advantage * logprobs, ratio != clipped
    plain, bound = -advantage * ratio, -advantage * clipped
    losses = torch.maximum(plain, bound)
    if config.dual_clip is not None and config.ratio == "token":
        losses = torch.where(advantage < 0, torch.minimum(-advantage * config.dual_clip, losses), losses)
    return losses, bound > plain


def policy_loss(
    logprobs: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    config: LossConfig,
    total: Total,
    engine: Tensor | None = None,
    reference: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a part of a batch, and what to watch.

    Args:
        logprobs, old, mask: see ``token_losses``.
        advantage: ``[responses]``.
        total: counts of the whole batch.
        engine: log-probabilities the engine reported, for the weights of ``tis``.
        reference: log-probabilities of the reference model; needed when ``config.kl`` is not 0.

    Returns:
        A scalar whose sum over parts is the batch's loss, and sums over this part's tokens: ``clipped``, ``kl``.

    Raises:
        InvalidRequest: ``reference`` is missing.
    """
    losses, clipped = token_losses(logprobs, old, advantage[:, None], mask, config)
    if engine is not None:
        losses = losses * engine_weights(old, engine, mask, config)
    loss = aggregate(losses, mask, config, total)
    seen = {"clipped": float((clipped * mask).sum()), "kl": 0.0}
    if config.kl:
        if reference is None:
            raise InvalidRequest("kl needs the log-probabilities of the reference model", param="reference")
        apart = distance(logprobs, reference, config.kl_kind)
        loss = loss + config.kl * aggregate(apart, mask, config, total)
        seen["kl"] = float(torch.where(mask > 0, apart.detach(), 0).sum())
    return loss, seen
