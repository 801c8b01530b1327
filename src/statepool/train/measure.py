"""How well a model does on held-out problems of a task, with every conversation it held."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.hub import resolve
from statepool.rollout import LocalHosts
from statepool.tasks import Task
from statepool.tasks.catalog import draw
from statepool.train.agent import Agent, AgentConfig, Job
from statepool.train.run import HELD_OUT_SEED, mean_score, success
from statepool.train.trajectory import Trajectory, counts
from statepool.train.world import World, WorldConfig


@dataclass(frozen=True, slots=True)
class Measured:
    """Conversations about held-out problems, and their texts."""

    task: str
    trajectories: list[Trajectory]
    texts: list[str]

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "task": self.task,
            "problems": len(self.trajectories),
            "success": success(self.trajectories),
            "mean_score": mean_score(self.trajectories),
            "turns": sum(t.turns for t in self.trajectories) / len(self.trajectories),
            "tokens": sum(t.response.chosen for t in self.trajectories) / len(self.trajectories),
            "faults": counts(self.trajectories),
        }

    def text(self, shown: int) -> str:
        """For people: the first ``shown`` conversations, then the sum of all."""
        lines = []
        for trajectory, text in list(zip(self.trajectories, self.texts, strict=True))[:shown]:
            verdict = trajectory.verdict
            lines += [trajectory.problem.messages[-1]["content"], text]
            lines += [f"-> {verdict.score:g}: {verdict.reason}" if verdict else "-> no verdict", ""]
        found = self.record()
        lines.append(
            f"{found['success']:.1%} of {found['problems']} held-out problems of {self.task} solved; "
            f"mean score {found['mean_score']:.3f}; "
            f"{found['turns']:.1f} turns, {found['tokens']:.0f} tokens each"
        )
        lines += [f"{count} {name}" for name, count in found["faults"].items()]
        return "\n".join(lines)


def measure(task: Task, options: argparse.Namespace) -> Measured:
    """Answer ``options.count`` held-out problems with ``options.model``.

    Raises:
        InvalidConfig, InvalidCheckpoint: see ``Engine``.
    """
    config = EngineConfig(
        model=options.model, quant=options.quant, threads=options.threads, max_seqs=128, max_batched_tokens=1024
    )
    engine = Engine(config)
    world = World(task, resolve(options.model), WorldConfig(isolation=options.isolation))
    sampling = AgentConfig(turns=options.turns, turn_tokens=options.turn_tokens, temperature=options.temperature)
    agent = Agent(LocalHosts([engine]), task, world.open, sampling)
    try:
        problems = draw(task, HELD_OUT_SEED + options.seed, options.count, held_out=True)
        found = agent.run([Job(problem, i, 1) for i, problem in enumerate(problems)], options.seed)
    finally:
        world.close()
    texts = [engine.tokenizer.decode(t.response.tokens, skip_special=False) for t in found]
    return Measured(task.name, found, texts)
