"""Settings of an iteration from a file, and its groups from prompts or from a task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.request import SamplingParams
from statepool.rollout.groups import Group
from statepool.rollout.policies import NAMES
from statepool.tasks.base import Problem

__all__ = ["RolloutConfig", "read_groups", "task_named"]


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """What to roll out and how; engine settings stand beside it in the same file.

    Args:
        engines: processes, each with its own KV.
        ray: address of a Ray cluster that places them (``auto`` for the one this machine belongs to, ``local`` for one
            made here); None: processes of this machine.
        prompts: JSON lines with ``id`` and one of ``messages``, ``prompt`` (text) or ``prompt_token_ids``.
        task: instead of ``prompts``: a built-in family of problems, or several with commas; answers are then verified.
        problems: how many of the task's problems.
        size: responses per group.
        max_tokens, temperature, top_p, seed: of the responses.
        policy: who goes next; see ``statepool rollout run --help``.
        chunk: tokens after which a response may move; None: an eighth of ``max_tokens``.
        drafts: ``group`` (from siblings), ``self`` (from a response's own text) or ``off``; never changes a token.
        paths: guesses that a draft may hold at once, 1 to 4.
        journal: folder that outlives a killed run; the same command goes on from it.
        out: JSON lines, one per response.
        trace: JSON lines, one per response, with its chunks; see docs/rollout.md.
        plot: SVG of who ran where and when.
        pin: each engine has one processor core.
    """

    engines: int = 2
    ray: str | None = None
    prompts: str | None = None
    task: str | None = None
    problems: int = 16
    size: int = 8
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    policy: str = "auto"
    chunk: int | None = None
    drafts: str = "group"
    paths: int = 1
    journal: str | None = None
    out: str | None = None
    trace: str | None = None
    plot: str | None = None
    pin: bool = False

    def __post_init__(self) -> None:
        if (self.prompts is None) == (self.task is None):
            raise InvalidConfig("give either prompts (a file) or task (a family of problems)", param="prompts")
        if self.policy not in NAMES:
            raise InvalidConfig(f"policy must be one of {', '.join(NAMES)}, got {self.policy!r}", param="policy")
        if self.drafts not in ("off", "self", "group"):
            raise InvalidConfig(f"drafts must be off, self or group, got {self.drafts!r}", param="drafts")
        for name in ("engines", "problems", "size", "max_tokens"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {getattr(self, name)}", param=name)
        if not 1 <= self.paths <= 4:
            raise InvalidConfig(f"paths must be from 1 to 4, got {self.paths}", param="paths")
        if self.chunk is not None and self.chunk < 1:
            raise InvalidConfig(f"chunk must be at least 1, got {self.chunk}", param="chunk")

    @property
    def params(self) -> SamplingParams:
        """Of every response."""
        return SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, logprobs=0)


def task_named(name: str) -> Any:
    """A family of problems by its name.

    Raises:
        InvalidConfig: there is none.
    """
    from statepool.tasks.synthetic import FAMILIES

    if name not in FAMILIES:
        raise InvalidConfig(f"task must be one of {', '.join(FAMILIES)}, got {name!r}", param="task")
    return FAMILIES[name]


def read_groups(config: RolloutConfig, tokenizer: Any, template: Any) -> tuple[list[Group], dict[str, Problem]]:
    """The groups of an iteration, and the problem behind each where a task has one.

    Raises:
        InvalidRequest: a line of the prompts is no prompt; the message names it.
    """
    if config.task is not None:
        return _from_task(config, tokenizer, template)
    assert config.prompts is not None
    path = Path(config.prompts)
    groups = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            groups.append(_group(line, f"{path}:{number}", number, config, tokenizer, template))
    if not groups:
        raise InvalidRequest(f"{path} holds no prompt", param="prompts")
    return groups, {}


def _from_task(config: RolloutConfig, tokenizer: Any, template: Any) -> tuple[list[Group], dict[str, Problem]]:
    assert config.task is not None
    tasks = [task_named(name.strip()) for name in config.task.split(",")]
    sources = [task.problems(config.seed) for task in tasks]
    groups, problems = [], {}
    for number in range(config.problems):
        task, source = tasks[number % len(tasks)], sources[number % len(tasks)]
        problem = next(source)
        prompt = template.encode(tokenizer, list(task.prompt(problem)), tools=list(task.tools(problem)) or None)
        name = f"{problem.task}-{number}"
        groups.append(Group(name, tuple(prompt), config.size, config.params))
        problems[name] = problem
    return groups, problems


def _group(line: str, where: str, number: int, config: RolloutConfig, tokenizer: Any, template: Any) -> Group:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{where} is no JSON: {error}", param="prompts") from None
    if not isinstance(record, dict):
        raise InvalidRequest(f"{where} must be an object with messages, prompt or prompt_token_ids", param="prompts")
    if isinstance(record.get("messages"), list):
        tokens = template.encode(tokenizer, record["messages"])
    elif isinstance(record.get("prompt"), str):
        tokens = tokenizer.encode(record["prompt"], add_special=True, allow_special=True)
    elif isinstance(record.get("prompt_token_ids"), list):
        tokens = record["prompt_token_ids"]
    else:
        raise InvalidRequest(f"{where} has neither messages nor prompt nor prompt_token_ids", param="prompts")
    return Group(str(record.get("id", number)), tuple(tokens), config.size, config.params)
