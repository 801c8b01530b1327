"""A training run: imitate, then play and learn; publish weights, try held-out problems; stop and go on anywhere.

    weights of step n ──► engine ──► conversations ──► verdicts ──► advantages ──► gradients ──► weights of step n + 1

A run is a function of its settings: problems and noise are drawn from (seed, step), so a run that was killed at any
point and went on from its checkpoint leaves the same curve as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from statepool.core.errors import StatepoolError
from statepool.engine.engine import Engine
from statepool.engine.hub import resolve
from statepool.rollout import LocalHosts
from statepool.rollout.fleet import Fleet
from statepool.tasks import Problem
from statepool.tasks.catalog import draw, find
from statepool.train import checkpoint, policy
from statepool.train.agent import Agent, Job
from statepool.train.config import RunConfig
from statepool.train.demonstrate import demonstration
from statepool.train.learner import Learner
from statepool.train.report import Report
from statepool.train.trajectory import Trajectory, counts
from statepool.train.weights import Publisher, take_up
from statepool.train.world import World

if TYPE_CHECKING:
    from statepool.train.lora import Merged

HELD_OUT_SEED = 1 << 40
_SPREAD = 1_000_003


class WorldLost(StatepoolError):
    """Tools or the verifier failed in every conversation of a step."""

    status = 503
    code = "world_lost"


class Run:
    """One run in one folder. ``go`` runs it to its end; a second object on the same folder goes on.

    Raises:
        InvalidConfig: settings that contradict each other or the model. CheckpointMismatch: see ``checkpoint.load``.
    """

    def __init__(self, config: RunConfig, fresh: bool = False) -> None:
        self.config = config
        self.out = Path(config.train.out)
        self.out.mkdir(parents=True, exist_ok=True)
        if fresh:
            (self.out / checkpoint.FILE).unlink(missing_ok=True)
        model = resolve(config.engine.model)
        if config.engine.threads is not None:
            torch.set_num_threads(config.engine.threads)
        torch.use_deterministic_algorithms(True)
        # Nothing here reads what it did not write.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.task = find(config.train.task, config.train.settings)
        self.policy = policy.load(model, config.engine.attention)
        self.additions: Merged | None = None
        if config.train.lora_rank:
            from statepool.train.lora import Merged

            self.policy = self.additions = Merged(self.policy, config.train.lora_rank, config.train.seed)
        self.learner = Learner(self.policy, config.train, config.loss, config.agent.temperature)
        if config.loss.kl:
            self.learner.reference = policy.load(model)
        self.step = checkpoint.load(self.out, self.learner, config.plain())
        self.hosts = _hosts(config)
        self.world = World(self.task, model, config.world)
        self.agent = Agent(self.hosts, self.task, self.world.open, config.agent)
        self.publisher = Publisher(owner=self.out)
        self._shown: list[Any] = []
        self._kept: list[Problem] = []

    @property
    def last(self) -> int:
        """Steps of both parts together."""
        return self.config.train.imitation + self.config.train.steps

    def go(self, report: Report) -> float | None:
        """Run to the end, or to ``target``; returns the last share of held-out problems that were solved."""
        train = self.config.train
        solved: float | None = None
        if self.step == 0 and train.eval_problems:
            began = time.monotonic()
            solved, score = self.held_out()
            looked = {"held_out": solved, "held_out_score": score}
            report.line({"step": 0, "phase": "start", **looked, "seconds": _since(began)})
        while self.step < self.last:
            began = time.monotonic()
            line = self.advance()
            due = self.step % train.eval_every == 0 or self.step in (train.imitation, self.last)
            if due and train.eval_problems:
                solved, line["held_out_score"] = self.held_out()
                line["held_out"] = solved
            checkpoint.save(self.out, self.learner, self.step, self.config.plain())
            report.line({**line, "seconds": _since(began)})
            if solved is not None and train.target is not None and due and solved >= train.target:
                report.say(f"{solved:.1%} of the held-out problems are solved: the target is reached")
                break
        self.policy.export(self.out / "model")
        if self.additions is not None:
            self.additions.export_additions(self.out / "adapter")
        return solved

    def advance(self) -> dict[str, Any]:
        """Do one step; returns its line of the curve."""
        step, train = self.step, self.config.train
        line = self._imitate(step) if step < train.imitation else self._play(step)
        self.step += 1
        return {"step": self.step, **line}

    def held_out(self) -> tuple[float, float]:
        """The share of held-out problems that greedy answers solve, and their mean score."""
        train = self.config.train
        if not self._kept:
            self._kept = draw(self.task, HELD_OUT_SEED + train.seed, train.eval_problems, held_out=True)
        self._publish()
        agent = Agent(self.hosts, self.task, self.world.open, replace(self.config.agent, temperature=0.0))
        found = agent.run([Job(problem, i, 1) for i, problem in enumerate(self._kept)])
        return success(found), mean_score(found)

    def rate(self, step: int) -> float:
        """The learning rate of a step of GRPO: a ramp, a plateau and a fall to a tenth."""
        train = self.config.train
        left = (train.steps - step) / max(1.0, train.decay * train.steps)
        return train.rate * min(1.0, (step + 1) / max(train.warmup, 1), 0.1 + 0.9 * left)

    def close(self) -> None:
        """Free the weights in shared memory and what runs tools."""
        self.publisher.close()
        if isinstance(self.hosts, Fleet):
            self.hosts.close()
        self.world.close()

    def _publish(self) -> None:
        version = f"{self.step}"
        if self.hosts.version() == version and self.step:
            return
        if isinstance(self.hosts, Fleet):  # copies: it gives them to an engine that takes the place of a dead one
            self.hosts.update_weights([(name, value.copy()) for name, value in self.policy.tensors()], version)
            return
        self.publisher.publish(self.policy.tensors(), version)
        for engine in self.hosts.engines:
            take_up(engine, self.publisher.folder, version)

    def _imitate(self, step: int) -> dict[str, Any]:
        train = self.config.train
        if not self._shown:
            problems = draw(self.task, train.seed, train.demonstrations)
            self._shown = [demonstration(self.agent, problem) for problem in problems]
        first = step * train.imitation_batch
        batch = [self._shown[(first + i) % len(self._shown)] for i in range(train.imitation_batch)]
        rate = train.imitation_rate * min(1.0, (step + 1) / max(train.warmup, 1))
        return {"phase": "imitate", "rate": rate, **self.learner.imitate(batch, rate)}

    def _play(self, step: int) -> dict[str, Any]:
        train = self.config.train
        self._publish()
        local = isinstance(self.hosts, LocalHosts)
        for engine in self.hosts.engines if isinstance(self.hosts, LocalHosts) else ():
            engine.reset_prefix_cache()  # what a look at held-out problems left must not change the counts
        seed = step_seed(train.seed, step)
        problems = draw(self.task, seed, train.prompts)
        before = replace(self.agent.work)
        found = self.agent.run([Job(p, i, train.members) for i, p in enumerate(problems)], seed)
        judged = [t.verdict.score for t in found if t.verdict is not None]
        if not judged:
            raise WorldLost(
                f"no conversation of step {step + 1} came to a verdict ({counts(found)}), so there is nothing to learn "
                "from; the last checkpoint holds"
            )
        rate = self.rate(step - train.imitation)
        learned = self.learner.reinforce(found, rate)
        work = self.agent.work
        return {
            "phase": "play",
            "reward": sum(judged) / len(judged),
            "rate": rate,
            **learned,
            "judged": len(judged),
            "turns": sum(t.turns for t in found) / len(found),
            "tokens": sum(t.response.chosen for t in found) / len(found),
            # What engines of a fleet compute depends on who was free when, and the curve does not.
            **({"computed": work.computed - before.computed, "fresh": work.fresh - before.fresh} if local else {}),
            "faults": counts(found),
            "ends": {
                end: n for end in ("answer", "length", "turns", "lost") if (n := sum(t.end == end for t in found))
            },
        }


def _hosts(config: RunConfig) -> LocalHosts | Fleet:
    """One engine beside the trainer, or processes of their own, on this machine or placed by Ray."""
    train = config.train
    if train.engines == 1 and train.ray is None:
        return LocalHosts([Engine(config.engine)])
    return Fleet(config.engine, train.engines, ray=train.ray)


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's problems; those of its noise follow it."""
    return (seed * _SPREAD + step + 1) * _SPREAD


def success(trajectories: Sequence[Trajectory]) -> float:
    """The share of conversations with a full score; one without a verdict is no success."""
    return sum(t.verdict is not None and t.verdict.score >= 1.0 for t in trajectories) / max(len(trajectories), 1)


def mean_score(trajectories: Sequence[Trajectory]) -> float:
    """The mean score of conversations; one without a verdict counts as 0."""
    return sum(t.verdict.score for t in trajectories if t.verdict is not None) / max(len(trajectories), 1)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
