"""Groups with real texts for the live rows: the prompt decides the length, and the temperature varies it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from statepool.engine.config import EngineConfig
from statepool.engine.hub import resolve
from statepool.engine.text.template import ChatTemplate
from statepool.engine.text.tokenizer import Tokenizer
from statepool.rollout.config import RolloutConfig, read_groups, task_named
from statepool.rollout.groups import Group
from statepool.tasks.base import Problem

TASKS = "echo,sums"


@dataclass(frozen=True)
class Load:
    """One iteration: groups, the problem behind each, and the engines that answer."""

    groups: list[Group]
    problems: dict[str, Problem]
    engine: EngineConfig

    @property
    def tasks(self) -> dict[str, Any]:
        """The tasks by name."""
        return {name: task_named(name) for name in TASKS.split(",")}


def load(problems: int = 16, size: int = 16, kv_bytes: int = 800 << 10, most: int = 400) -> Load:
    """16 groups of 16 on engines that hold a third of a batch at full length."""
    model = resolve("tiny")
    config = RolloutConfig(task=TASKS, problems=problems, size=size, max_tokens=most, temperature=1.3)
    groups, known = read_groups(config, Tokenizer.load(model), ChatTemplate.load(model))
    engine = EngineConfig(kv_bytes=kv_bytes, max_seqs=32, threads=1, max_waiting=4096, max_model_len=768)
    return Load(groups, known, engine)


@cache
def texts() -> list[list[np.ndarray]]:
    """Responses of every group, int32 each, as the bundled model gives them at temperature 1.3."""
    from statepool.engine.engine import Engine
    from statepool.rollout.live import rollout

    wanted = load(kv_bytes=32 << 20)
    done = rollout(Engine(wanted.engine), wanted.groups, policy="verl_request")
    return [[np.array(r.tokens, np.int32) for r in members] for members in done.by_group().values()]
