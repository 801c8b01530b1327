"""What every task offers: problems drawn from a seed, a prompt, tools and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

Message: TypeAlias = dict[str, Any]
"""One chat message in the OpenAI form: role, content and, for an assistant, tool_calls."""

Tool: TypeAlias = dict[str, Any]
"""One function description in the OpenAI form."""


@dataclass(frozen=True)
class Verdict:
    """How good an answer is: a score from 0 to 1 and the reason in words."""

    score: float
    reason: str


@dataclass(frozen=True)
class Problem:
    """One question: the messages up to it, the tools offered and what its check needs.

    `answer` is the reply a perfect model gives word for word; `values` are the parts of it that the check compares.
    """

    task: str
    messages: tuple[Message, ...]
    answer: str
    values: tuple[str, ...]
    tools: tuple[Tool, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A source of problems whose answers can be checked exactly."""

    name: str

    def problems(self, seed: int) -> Iterator[Problem]:
        """Yield problems without end; the same seed yields the same problems."""
        ...

    def prompt(self, problem: Problem) -> Sequence[Message]:
        """Return the chat messages to send to the model."""
        ...

    def tools(self, problem: Problem) -> Sequence[Tool]:
        """Return the tools the model may call."""
        ...

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Judge a complete answer."""
        ...
