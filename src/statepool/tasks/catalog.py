"""Tasks by name, with their settings, and problems for training that the held-out ones are kept apart from."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import islice
from typing import Any

from statepool.core.errors import InvalidConfig
from statepool.tasks.base import Problem, Task

__all__ = ["draw", "find", "is_held_out", "names"]

_TASKS = {
    "column-addition": "statepool.tasks.arithmetic:ColumnAddition",
    "python-steps": "statepool.tasks.tools:PythonSteps",
    "retrieval": "statepool.tasks.retrieval:Retrieval",
    "reasoning-gym": "statepool.tasks.adapters:ReasoningGym",
    "environment": "statepool.tasks.adapters:EnvironmentTask",
    "verifiers": "statepool.tasks.verifiers:VerifiersTask",
    "sequences": "statepool.tasks.sequences.task:SequenceTask",
    "topology-flips": "statepool.tasks.topology.task:FlipTask",
    "topology-slope": "statepool.tasks.topology.task:SlopeTask",
    "topology-pair": "statepool.tasks.topology.task:PairTask",
    "facts": "statepool.tasks.synthetic:FACTS",
    "chains": "statepool.tasks.synthetic:CHAINS",
    "sums": "statepool.tasks.synthetic:SUMS",
    "echo": "statepool.tasks.synthetic:ECHO",
    "calls": "statepool.tasks.synthetic:CALLS",
}
HELD_OUT_SHARE = 8
"""One problem in so many is held out."""
PATIENCE = 250
"""Problems to look at for each one wanted, before a task counts as having too few."""


def names() -> list[str]:
    """The tasks that ship with statepool."""
    return sorted(_TASKS)


def find(name: str, settings: Mapping[str, Any] | None = None) -> Task:
    """A task by its name, or by ``module:Class`` for anybody's own; ``settings`` are the arguments of its class.

    Raises:
        InvalidConfig: no such task, or a setting it does not have or cannot use.
    """
    place = _TASKS.get(name, name)
    module, _, attribute = place.partition(":")
    if not attribute:
        raise InvalidConfig(f"unknown task {name!r}; known are {', '.join(names())}, or module:Class", param="task")
    try:
        found = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise InvalidConfig(f"task {name!r} needs the module {error.name!r}, which is missing", param="task") from None
    except AttributeError:
        raise InvalidConfig(f"task {name!r}: {module} has no {attribute}", param="task") from None
    if not inspect.isclass(found):
        if settings:
            raise InvalidConfig(f"task {name!r} takes no settings, got {dict(settings)}", param="settings")
        return found  # type: ignore[no-any-return]
    kind: Any = found
    return _built(name, kind, dict(settings or {}))


def _built(name: str, kind: Callable[..., Task], settings: dict[str, Any]) -> Task:
    known = [key for key in inspect.signature(kind).parameters if key != "name"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidConfig(
            f"task {name!r} has no setting {unknown[0]!r}; it has {', '.join(known) or 'none'}", param="settings"
        )
    try:
        return kind(**settings)
    except TypeError as error:
        raise InvalidConfig(f"task {name!r}: {error}", param="settings") from None


def is_held_out(problem: Problem) -> bool:
    """Whether a problem is kept for evaluation. Decided by its text, so no draw of training problems can hold it."""
    text = json.dumps([problem.messages, problem.values], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()[0] % HELD_OUT_SHARE == 0


def draw(task: Task, seed: int, count: int, held_out: bool = False) -> list[Problem]:
    """The first ``count`` problems of a seed that are, or are not, held out.

    Raises:
        InvalidConfig: there are so few different problems that none, or hardly any, are of the wanted kind.
    """
    kept = (problem for problem in islice(task.problems(seed), PATIENCE * count) if is_held_out(problem) == held_out)
    found = list(islice(kept, count))
    if len(found) < count:
        kind = "held out" if held_out else "for training"
        raise InvalidConfig(
            f"task {task.name!r}: of {PATIENCE * count} problems drawn only {len(found)} are {kind}; it has too few "
            "different ones, so give it more, or leave held-out problems out with eval_problems: 0",
            param="task",
        )
    return found
