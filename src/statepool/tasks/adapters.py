"""Other people's tasks as ours: reasoning-gym's datasets, and environments with `reset` and `step`.

An environment has its own turns: what the model writes is the action, what `step` returns is what the world says. The
common forms are read: Gymnasium's tuples, and OpenEnv's objects, which either have an `observation` beside `reward` and
`done` (its clients) or are one (its environments).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from importlib import import_module
from random import Random
from typing import Any

from statepool.core.errors import InvalidConfig
from statepool.tasks.base import Dialogue, Message, Problem, Tool, Turn, Verdict
from statepool.tasks.synthetic.episode import reply

__all__ = ["Environment", "EnvironmentTask", "Played", "ReasoningGym", "maker"]

_log = logging.getLogger(__name__)
_BLOCK = 64
_TEXTS = ("text", "message", "content")


@dataclass(frozen=True)
class ReasoningGym:
    """A dataset of reasoning-gym (PyPI ``reasoning-gym``), judged by its own scorer.

    `dataset` is its name, such as ``chain_sum``; `config` its settings. The answer is what stands between `<answer>`
    tags, or the whole reply behind the reasoning.

    Raises:
        InvalidConfig: the package is missing, or has no such dataset or setting.
    """

    dataset: str = "chain_sum"
    config: Mapping[str, Any] = default(default_factory=dict)
    name: str = "reasoning-gym"

    def __post_init__(self) -> None:
        self._made(0, 1)

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        rng = Random(f"{self.name} {self.dataset} {seed}")
        while True:
            block = rng.getrandbits(31)
            made = self._made(block, _BLOCK)
            for index in range(_BLOCK):
                entry = made[index]
                ask: Message = {"role": "user", "content": entry["question"]}
                answer = str(entry["answer"])
                yield Problem(self.name, (ask,), answer, (answer,), facts={"block": block, "index": index})

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """The dataset's question as a user's message."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """None."""
        return problem.tools

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The score of the dataset's scorer; 1 is right."""
        text = reply(answer)
        tagged = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)
        given = tagged[-1].strip() if tagged else text
        made = self._made(problem.facts["block"], _BLOCK)
        score = float(made.score_answer(given, made[problem.facts["index"]]))
        return Verdict(score, "right" if score >= 1 else f"expected {problem.answer}; found {given[:80]}")

    def _made(self, seed: int, size: int) -> Any:
        try:
            gym = import_module("reasoning_gym")
        except ModuleNotFoundError:
            raise InvalidConfig(
                "reasoning-gym is not installed; pip install 'statepool[tasks]'", param="task"
            ) from None
        try:
            return gym.create_dataset(self.dataset, seed=seed, size=size, **self.config)
        except (ValueError, TypeError, AssertionError) as error:
            raise InvalidConfig(f"reasoning-gym has no such dataset or setting: {error}", param="settings") from None


class Played:
    """The part of a task that all environments share: problems carry their prompt, and replies are played."""

    step = "action"
    """What the environment calls a reply."""

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """What the environment says before the first reply, behind instructions if there are any."""
        return problem.messages

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """None: the environment reads the reply itself."""
        return problem.tools

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Play one reply and judge it; conversations of several turns are judged by `open`."""
        turn = self.open(problem).reply(answer)
        return turn.verdict or Verdict(0.0, f"the environment did not end with this {self.step}")

    def open(self, problem: Problem) -> Dialogue:
        """The environment's side of a conversation about a problem."""
        raise NotImplementedError


@dataclass(frozen=True)
class EnvironmentTask(Played):
    """An environment as a task: each seed is a problem, the return its score.

    `make` is the environment's class, or ``module:name`` of it; `settings` are its arguments. `best` is the return that
    scores 1; lower returns score their share of it, and what is beyond counts as 1. `turns` bounds the actions.

    What the model writes is the action. Where `step` wants more than text, `action` is the class of its actions, or
    ``module:name`` of it, and `field` the argument that takes the text; `field` alone makes it a dictionary.

    Raises:
        InvalidConfig: there is no such environment, `action` comes without `field`, or `best` is not above 0.
    """

    make: str | Callable[..., Any]
    settings: Mapping[str, Any] = default(default_factory=dict)
    instructions: str = ""
    best: float = 1.0
    turns: int = 16
    action: str | Callable[..., Any] = ""
    field: str = ""
    name: str = "environment"

    def __post_init__(self) -> None:
        if not self.best > 0:
            raise InvalidConfig(f"best must be above 0, got {self.best}", param="best")
        maker(self.make)
        if self.action:
            maker(self.action)
            if not self.field:
                raise InvalidConfig("action needs field: the argument of it that takes the text", param="field")

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield one problem per seed of the environment, without end."""
        rng = Random(f"{self.name} {seed}")
        while True:
            start = rng.getrandbits(31)
            environment = maker(self.make)(**self.settings)
            text = _read(_reset(environment, start))[0]
            _close(environment)
            messages: list[Message] = [{"role": "user", "content": text}]
            if self.instructions:
                messages.insert(0, {"role": "system", "content": self.instructions})
            # The seed tells problems apart, and held-out ones from others: many environments all begin alike.
            yield Problem(self.name, tuple(messages), "", (str(start),), facts={"seed": start})

    def open(self, problem: Problem) -> Environment:
        """The environment at the problem's start."""
        environment = maker(self.make)(**self.settings)
        _reset(environment, problem.facts["seed"])
        return Environment(environment, self.best, self.turns, self._act)

    def _act(self, text: str) -> Any:
        """What `step` is given."""
        if self.action:
            return maker(self.action)(**{self.field: text})
        return {self.field: text} if self.field else text


class Environment:
    """The world's side of a conversation with an environment."""

    def __init__(self, environment: Any, best: float, turns: int, act: Callable[[str], Any] = str) -> None:
        self._environment = environment
        self._act = act
        self._best = best
        self._left = turns
        self._return = 0.0

    def reply(self, text: str) -> Turn:
        """Take an action; the observation, or the verdict when the episode is over."""
        self._left -= 1
        said, reward, done = _read(self._environment.step(self._act(reply(text))))
        if not math.isfinite(reward):
            _log.warning("an environment gave the reward %r, so this conversation gets none", reward)
            return Turn(faults=("verifier_error",))
        self._return += reward
        if done or self._left <= 0:
            score = min(max(self._return / self._best, 0.0), 1.0)
            return Turn(verdict=Verdict(score, f"return {self._return:g} of {self._best:g}"))
        return Turn(said, role="user")

    def close(self) -> None:
        """Close the environment, if it can be."""
        _close(self._environment)


def maker(make: str | Callable[..., Any]) -> Callable[..., Any]:
    """What makes an environment, where it is given as ``module:name``.

    Raises:
        InvalidConfig: there is no such module or name.
    """
    if not isinstance(make, str):
        return make
    module, _, name = make.partition(":")
    try:
        made: Callable[..., Any] = getattr(import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise InvalidConfig(f"environment {make!r} cannot be found: {error}", param="make") from None
    return made


def _reset(environment: Any, seed: int) -> Any:
    try:
        return environment.reset(seed=seed)
    except TypeError:
        return environment.reset()


def _close(environment: Any) -> None:
    close = getattr(environment, "close", None)
    if close is not None:
        close()


def _read(result: Any) -> tuple[str, float, bool]:
    """Observation, reward and whether it is over, of any of the known forms."""
    if isinstance(result, tuple):
        if len(result) == 2:  # reset of Gymnasium: observation, info
            return _text(result[0]), 0.0, False
        ended = any(bool(flag) for flag in result[2:-1])
        return _text(result[0]), float(result[1]), ended
    said = getattr(result, "observation", result)
    reward = getattr(result, "reward", None)
    return _text(said), float(reward or 0.0), bool(getattr(result, "done", False))


def _text(observation: Any) -> str:
    """The text of an observation: its own, the only thing it holds, or all that as JSON."""
    dump = getattr(observation, "model_dump", None)
    held = dump(mode="json", exclude={"done", "reward", "metadata"}) if dump else observation
    if not isinstance(held, Mapping):
        held = {name: getattr(observation, name, None) for name in _TEXTS}
        return next((text for text in held.values() if isinstance(text, str)), str(observation))
    texts = [held[name] for name in _TEXTS if isinstance(held.get(name), str)] or list(held.values())
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else json.dumps(held, ensure_ascii=False)
