"""Conversations of a task on the engines of a rollout: each prompt computed once, then turns, tools and verdicts.

    prompt ──► once per group ──► forked to its members ──► rollout(…, tools=…) ──► trajectories

The conversations themselves are the rollout room's (``rollout.tools``): tokens in, tokens out, a turn at a time, with
the KV of a conversation waiting where its turn ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineStats
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.engine.text.tokenizer import Tokenizer
from statepool.rollout import Group, LocalHosts, Speech, Tools, rollout
from statepool.rollout.groups import request_id
from statepool.rollout.hosts import Hosts
from statepool.tasks import Dialogue, Problem, Task
from statepool.train.trajectory import Trajectory

_SHARED = "shared beginning"


@dataclass(frozen=True, slots=True)
class Job:
    """One problem to be answered ``members`` times; no two jobs of a run have one ``group``."""

    problem: Problem
    group: int
    members: int


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How conversations are sampled.

    Args:
        turns: most turns of the model.
        turn_tokens: most tokens of one turn.
        temperature: 0 takes the likeliest token.
        tool_threads: tools and judges that run at the same time.
        patience: seconds without any answer from the world after which it counts as broken; its own limits are lower.

    Raises:
        InvalidConfig: a number out of range.
    """

    turns: int = 6
    turn_tokens: int = 128
    temperature: float = 1.0
    tool_threads: int = 4
    patience: float = 120.0

    def __post_init__(self) -> None:
        for name in ("turns", "turn_tokens", "tool_threads", "patience"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"{name} must be above 0, got {getattr(self, name)}", param=name)
        if self.temperature < 0:
            raise InvalidConfig(f"temperature must not be negative, got {self.temperature}", param="temperature")


@dataclass(slots=True)
class Work:
    """What conversations cost, in tokens."""

    computed: int = 0
    """Tokens of prompts that were computed: all that did not come from the pool."""
    fresh: int = 0
    """The least of that: tokens no conversation had before, and the last one of each turn, whose KV is not there."""


class Agent:
    """Holds conversations of one task.

    Args:
        hosts: the engines; nobody else may use them during ``run``.
        task: where prompts and tools come from.
        open_dialogue: the world's side of a conversation about a problem, in a group.
        config: how to sample.

    Raises:
        InvalidConfig: the chat template has no form for what a tool says.
    """

    def __init__(
        self, hosts: Hosts, task: Task, open_dialogue: Callable[[Problem, int], Dialogue], config: AgentConfig
    ) -> None:
        self.hosts = hosts
        self.task = task
        self.config = config
        self.work = Work()
        self._open_dialogue = open_dialogue
        self._info = hosts.info()
        self.tokenizer = Tokenizer.load(Path(self._info.path))
        self.speech = Speech.load(self._info, self.tokenizer)

    def encode(self, problem: Problem) -> list[int]:
        """Token ids of a problem's prompt."""
        messages, tools = list(self.task.prompt(problem)), list(self.task.tools(problem))
        return self.speech.asked(messages, tools)

    def spoken(self, content: str) -> tuple[list[int], bool]:
        """Token ids of a turn as the model would choose them, and whether it would close the turn itself."""
        ids = self.tokenizer.encode(content, allow_special=True)
        if self.speech.call_end is not None and ids[-1:] == [self.speech.call_end]:
            return ids, False
        return [*ids, self._info.eos_ids[0]], True

    def run(self, jobs: Sequence[Job], seed: int = 0) -> list[Trajectory]:
        """Hold every conversation to its end; in the order of jobs and members.

        Tokens are a function of weights, ``seed``, group, member and what the world says.

        Raises:
            InvalidConfig: a prompt leaves no room for an answer.
        """
        groups = [self._group(job) for job in jobs]
        opened: dict[tuple[str, int], Dialogue] = {}
        before = self.hosts.stats()
        try:
            # Here and not in the tools' threads: a task with a tool that nothing runs is an error, no lost world.
            for job, group in zip(jobs, groups, strict=True):
                for member in range(job.members):
                    opened[group.id, member] = self._open_dialogue(job.problem, job.group)
            if isinstance(self.hosts, LocalHosts) and len(self.hosts.engines) == 1:
                _share_prompts(self.hosts.engines[0], groups)
            tools = Tools(
                lambda group, member: opened[group, member],
                self.speech,
                turns=self.config.turns,
                turn_tokens=self.config.turn_tokens,
                threads=self.config.tool_threads,
                patience=self.config.patience,
            )
            chunk = self.config.turn_tokens
            done = rollout(self.hosts, groups, policy="divided_rr", chunk=chunk, seed=seed, tools=tools)
        finally:
            for dialogue in opened.values():
                dialogue.close()
            self._forget()
        by_group = done.by_group()
        found = [
            Trajectory(job.problem, job.group, group.prompt, response)
            for job, group in zip(jobs, groups, strict=True)
            for response in by_group[group.id]
        ]
        self.work.computed += _computed(done.engines) - _computed(before)
        self.work.fresh += _fresh(found)
        return found

    def _group(self, job: Job) -> Group:
        prompt = tuple(self.encode(job.problem))
        room = self._info.max_model_len - len(prompt)
        if room < 1:
            raise InvalidConfig(
                f"a prompt of task {self.task.name!r} has {len(prompt)} tokens and the model holds "
                f"{self._info.max_model_len} with the answer; give the task shorter problems, or take another model",
                param="task",
            )
        most = min(self.config.turns * self.config.turn_tokens, room)
        params = SamplingParams(max_tokens=most, temperature=self.config.temperature, logprobs=0)
        return Group(f"{job.group}", prompt, job.members, params)

    def _forget(self) -> None:
        """Leave nothing of this run on the engines."""
        self.hosts.begin("")
        if isinstance(self.hosts, LocalHosts):
            for engine in self.hosts.engines:
                for name in engine.sessions.names(""):
                    engine.sessions.drop("", name)


def _share_prompts(engine: Engine, groups: Sequence[Group]) -> None:
    """Compute what prompts have in common once, each prompt's rest once, and fork its KV to its group's first turns."""
    sessions = engine.sessions
    shared = _common_prefix([group.prompt for group in groups])
    if shared and len(groups) > 1:
        _compute(engine, {_SHARED: groups[0].prompt[:shared]})
        for group in groups:
            sessions.fork("", _SHARED, group.id)
        sessions.drop("", _SHARED)
    _compute(engine, {group.id: group.prompt for group in groups})
    for group in groups:
        for member in range(group.size):
            sessions.fork("", group.id, request_id(group.id, member))
        sessions.drop("", group.id)


def _compute(engine: Engine, prompts: dict[str, tuple[int, ...]]) -> None:
    params = SamplingParams(max_tokens=0)
    engine.generate([Request(f"prompt {name}", ids, params, session=name) for name, ids in prompts.items()])


def _computed(engines: Sequence[EngineStats]) -> int:
    """Tokens of prompts that engines have computed since they began."""
    return sum(stats.prefix_query_tokens - stats.prefix_hit_tokens for stats in engines)


def _fresh(trajectories: Sequence[Trajectory]) -> int:
    """The least number of tokens of prompts and replies that had to be computed."""
    prompts = sorted({trajectory.prompt for trajectory in trajectories})
    # Sorted, each shares its longest known beginning with the one before it.
    total = sum(len(prompt) - (_common(prompt, prompts[i - 1]) if i else 0) for i, prompt in enumerate(prompts))
    said = (segment for trajectory in trajectories for segment in trajectory.segments if segment.role == "world")
    return total + sum(len(segment.tokens) + 1 for segment in said)


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    return min((_common(rows[0], row) for row in rows[1:]), default=0)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
