"""Settings of one training run: a YAML or TOML file of flat keys, each a field of one of these dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statepool.core.config import Settings
from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineConfig
from statepool.train.agent import AgentConfig
from statepool.train.grpo import LossConfig, Normalise
from statepool.train.world import WorldConfig


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What to train on, for how long, and how fast.

    Args:
        task: a task's name (``statepool eval --list``), or ``module:Class``.
        settings: the task's own settings.
        out: folder of checkpoint, curve and TensorBoard files; a second run goes on from there.
        seed: of problems and noise; a run is a function of it.
        steps: steps of GRPO.
        prompts: problems per step, each answered ``members`` times.
        imitation: steps of learning from demonstrations before that.
        imitation_batch: demonstrations per step; the same ``demonstrations`` come again and again.
        demonstrations: how many there are.
        imitation_rate, rate: learning rates of both parts; AdamW, warmed up over ``warmup`` steps.
        decay: share of the steps of GRPO, at their end, over which the rate falls to a tenth.
        normalise: see ``grpo.advantages``.
        minibatches: steps of the optimizer per batch of conversations; more than one makes ratios matter.
        micro_tokens: most tokens that go through the model at once; smaller takes less memory, for the same result.
        mask_truncated: leave conversations that ran out of tokens out of the loss.
        max_gap: stop if trainer and engine differ by more than this in a log-probability.
        lora_rank: learn low-rank additions of this rank instead of all weights (``peft``).
        eval_every, eval_problems: held-out problems are answered greedily every so many steps, and at both ends.
        target: stop once so large a share of them is solved.
        engines: processes that hold conversations; 1 is the trainer's own process.
        ray: address of a Ray cluster that places them (``auto``, ``local``); None keeps them on this machine.
        tensorboard: write TensorBoard files beside the curve. wandb: project to log to as well.

    Raises:
        InvalidConfig: a number out of range.
    """

    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    out: str = "runs/train"
    seed: int = 0
    steps: int = 60
    prompts: int = 16
    members: int = 8
    imitation: int = 0
    imitation_batch: int = 16
    demonstrations: int = 64
    imitation_rate: float = 1e-3
    rate: float = 5e-4
    warmup: int = 5
    decay: float = 0.3
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    normalise: Normalise = "group"
    minibatches: int = 1
    micro_tokens: int = 16384
    mask_truncated: bool = False
    max_gap: float | None = None
    lora_rank: int = 0
    eval_every: int = 10
    eval_problems: int = 128
    target: float | None = None
    engines: int = 1
    ray: str | None = None
    tensorboard: bool = True
    wandb: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "prompts",
            "imitation_batch",
            "demonstrations",
            "minibatches",
            "eval_every",
            "micro_tokens",
            "engines",
        ):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {getattr(self, name)}", param=name)
        for name in ("steps", "imitation", "warmup", "lora_rank", "eval_problems"):
            if getattr(self, name) < 0:
                raise InvalidConfig(f"{name} must not be negative, got {getattr(self, name)}", param=name)
        for name in ("rate", "imitation_rate", "grad_clip"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"{name} must be above 0, got {getattr(self, name)}", param=name)
        if self.members < 2 and self.steps:
            raise InvalidConfig(f"members must be at least 2, as a group compares them, got {self.members}")
        if self.minibatches > self.prompts:
            raise InvalidConfig(f"minibatches ({self.minibatches}) must not exceed prompts ({self.prompts})")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All settings of a run."""

    train: TrainConfig
    loss: LossConfig
    agent: AgentConfig
    world: WorldConfig
    engine: EngineConfig

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


def read(path: Path, flags: Mapping[str, Any] | None = None) -> RunConfig:
    """The settings in a file; ``flags`` (None: not given) are stronger.

    Raises:
        InvalidConfig: the file is unreadable, a key is unknown, or a value impossible; the message names it.
    """
    settings = Settings([TrainConfig, LossConfig, AgentConfig, WorldConfig, EngineConfig])
    settings.read_file(path)
    settings.read_flags(dict(flags or {}))
    if settings.source("task") is None:
        raise InvalidConfig(f"{path} names no task; add a line such as task: python-steps", param="task")
    # The engine's default arithmetic is int8; a trainer's question is what its own weights say.
    fixed = {name: value for name, value in _ENGINE.items() if settings.source(name) is None}
    return RunConfig(
        settings.build(TrainConfig),
        settings.build(LossConfig),
        settings.build(AgentConfig),
        settings.build(WorldConfig),
        settings.build(EngineConfig, **fixed),
    )


_ENGINE: dict[str, Any] = {"quant": "fp32", "kv_bytes": 256 << 20, "max_seqs": 128, "max_batched_tokens": 1024}
