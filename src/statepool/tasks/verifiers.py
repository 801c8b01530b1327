"""Environments in the manner of `verifiers` 0.1.14: rows of a dataset, replies, and a rubric that scores.

Nothing of that package is imported; whatever has these members is such an environment:

- `dataset`: rows with `prompt` (messages) or `question` (text), and, where a check needs them, `answer` and `info`;
- `rubric.score_rollout(state)`: leaves the score in `state["reward"]`;
- where there is more than one turn, `env_response(messages, state)`, which returns messages, and `is_completed(state)`;
- if wanted, `setup_state(state)`, `max_turns` and `system_prompt`.

Each may be a coroutine function.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any

from statepool.core.errors import InvalidConfig
from statepool.tasks.adapters import Played, maker
from statepool.tasks.base import Message, Problem, Turn, Verdict
from statepool.tasks.synthetic.episode import reply

__all__ = ["Conversation", "VerifiersTask"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifiersTask(Played):
    """An environment as a task: each row of its dataset is a problem, what its rubric says over `best` the score.

    `make` is the function that loads it, or ``module:name`` of that; `settings` are its arguments.

    Raises:
        InvalidConfig: there is no such environment, it lacks a member, or `best` is not above 0.
    """

    make: str | Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    best: float = 1.0
    name: str = "verifiers"
    step = "turn"

    def __post_init__(self) -> None:
        if not self.best > 0:
            raise InvalidConfig(f"best must be above 0, got {self.best}", param="best")
        for member in ("dataset", "rubric"):
            if getattr(self._environment, member, None) is None:
                raise InvalidConfig(f"environment {self.make!r} has no {member}", param="make")
        if not len(self._environment.dataset):
            raise InvalidConfig(f"the dataset of {self.make!r} is empty", param="make")

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield rows drawn at random, without end; the same seed yields the same problems."""
        rng, rows = Random(f"{self.name} {seed}"), self._environment.dataset
        while True:
            index = rng.randrange(len(rows))
            row = rows[index]
            messages = [dict(message) for message in row.get("prompt") or ()]
            if not messages:
                messages = [{"role": "user", "content": row["question"]}]
            system = getattr(self._environment, "system_prompt", None)
            if system and messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": system})
            answer = str(row.get("answer") or "")
            yield Problem(self.name, tuple(messages), answer, (str(index),), facts={"index": index})

    def open(self, problem: Problem) -> Conversation:
        """The environment's side of a conversation about a row."""
        return Conversation(self._environment, self._environment.dataset[problem.facts["index"]], problem, self.best)

    @cached_property
    def _environment(self) -> Any:
        return maker(self.make)(**self.settings)


class Conversation:
    """One rollout: the state that environment and rubric read and write."""

    def __init__(self, environment: Any, row: Mapping[str, Any], problem: Problem, best: float) -> None:
        self._environment = environment
        self._best = best
        shown = {name: value for name, value in row.items() if name not in ("prompt", "question")}
        self._state: dict[str, Any] = {
            "prompt": list(problem.messages), "completion": [], "answer": problem.answer, "info": {}, "turn": 0,
            "trajectory": [], "is_completed": False, "reward": None, "error": None, **shown,
        }  # fmt: skip
        setup = getattr(environment, "setup_state", None)
        if setup is not None:
            self._state = _settled(setup(self._state)) or self._state  # it may change what it was given instead

    def reply(self, text: str) -> Turn:
        """Hand over a turn of the model; the environment's reply, or the verdict when the rollout is over."""
        state = self._state
        said: Message = {"role": "assistant", "content": reply(text)}
        state["trajectory"].append({"prompt": [*state["prompt"], *state["completion"]], "completion": [said]})
        state["completion"].append(said)
        state["turn"] += 1
        if self._over():
            return self._judged()
        answered = _settled(self._environment.env_response([*state["prompt"], *state["completion"]], state))
        state["completion"].extend(answered)
        if self._over():
            return self._judged()
        return Turn("\n".join(str(message["content"]) for message in answered), role="user")

    def close(self) -> None:
        """Nothing is held."""

    def _over(self) -> bool:
        environment, state = self._environment, self._state
        if getattr(environment, "env_response", None) is None:
            return True
        most = getattr(environment, "max_turns", -1)
        if most > 0 and state["turn"] >= most:
            return True
        return bool(_settled(environment.is_completed(state)))

    def _judged(self) -> Turn:
        self._state["is_completed"] = True
        _settled(self._environment.rubric.score_rollout(self._state))
        reward = self._state["reward"]
        if reward is None or not math.isfinite(reward):
            _log.warning("a rubric gave the reward %r, so this conversation gets none", reward)
            return Turn(faults=("verifier_error",))
        score = min(max(reward / self._best, 0.0), 1.0)
        return Turn(verdict=Verdict(score, f"reward {reward:g} of {self._best:g}"))


def _settled(value: Any) -> Any:
    """What a function, or a coroutine function, comes to; conversations run in threads without a loop."""
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value
